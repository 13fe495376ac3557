"""The divergence of a model from its dense parent as a loss to train by, in bounded memory.

Logits of a batch may take gigabytes, and so may their gradient. So both are made for a few tokens
at a time, and only the gradient of the hidden states is kept.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.models.blocks import final_logits
from pruning.models.loss import rows_per_chunk

# float32 logits of each token at once: of both models, their exponentials, and the gradient
_NUM_LOGITS = 5


def divergence(model: PreTrainedModel, hidden: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Mean KL(dense || model) per token in nats, with a gradient for ``hidden``.

    ``hidden`` and ``dense`` ``[rows, width]`` are inputs of the head, which is that of ``model``
    for both and is not trained.
    """
    total: torch.Tensor = _SummedDivergence.apply(hidden, dense, model)  # type: ignore[no-untyped-call]  # of torch
    return total / len(hidden)


def hidden_error(hidden: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """The mean squared error of hidden states ``[rows, width]``, as a share of the dense square."""
    dense = dense.float()
    squares = nn.functional.mse_loss(hidden.float(), dense, reduction="none").sum(dim=1)
    return (squares / dense.square().sum(dim=1)).mean()


class _SummedDivergence(torch.autograd.Function):
    """The sum over rows. Its gradient is computed with it, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - of torch, which has no type for it
        hidden: torch.Tensor,
        dense: torch.Tensor,
        model: PreTrainedModel,
    ) -> torch.Tensor:
        per_chunk = rows_per_chunk(model, hidden.device, _NUM_LOGITS)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        gradient = torch.empty_like(hidden)
        parts = (hidden.split(per_chunk), dense.split(per_chunk), gradient.split(per_chunk))
        for rows, dense_rows, into in zip(*parts, strict=True):
            wanted = final_logits(model, dense_rows).float().log_softmax(dim=1)
            leaf = rows.detach().requires_grad_()
            with torch.enable_grad():
                found = final_logits(model, leaf).float().log_softmax(dim=1)
                nats = (wanted.exp() * (wanted - found)).sum()
                [of_rows] = torch.autograd.grad(nats, leaf)
            into.copy_(of_rows)
            total += nats.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        *outputs: torch.Tensor,
    ) -> tuple[torch.Tensor, None, None]:
        [of_total], [gradient] = outputs, ctx.saved_tensors
        return gradient * of_total.to(gradient.dtype), None, None
