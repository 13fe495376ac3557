"""The divergence of a model from its dense parent as a loss to train by, in bounded memory.

Logits of a batch may take gigabytes, and so may their gradient. So both are made for a few tokens
at a time, and only the gradient of the hidden states is kept.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.models.blocks import final_logits
from pruning.models.loss import rows_per_chunk

# float32 logits of each token at once: of both models, their exponentials, and the gradient
_NUM_LOGITS = 5
# of a chunk on a CPU, too: with fewer, products take as long as it takes to read the head's weights
_LEAST_ROWS = 64


def divergences(
    model: PreTrainedModel, hidden: Sequence[torch.Tensor], dense: torch.Tensor
) -> torch.Tensor:
    """Mean KL(dense || model) per token in nats of each model ``[models]``, with gradients.

    ``hidden`` of each and ``dense`` ``[rows, width]`` are inputs of the head, which is that of
    ``model`` for all of them and is not trained. Dense logits are made once for all.
    """
    # a name with a type, as only newer releases of torch give ``apply`` one
    summed: Callable[..., torch.Tensor] = _SummedDivergence.apply
    return summed(dense, model, *hidden) / len(dense)


def hidden_error(hidden: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """The mean squared error of hidden states ``[rows, width]``, as a share of the dense square."""
    dense = dense.float()
    squares = nn.functional.mse_loss(hidden.float(), dense, reduction="none").sum(dim=1)
    return (squares / dense.square().sum(dim=1)).mean()


class _SummedDivergence(torch.autograd.Function):
    """The sum over rows for each model. Its gradients are computed with it, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - of torch, which has no type for it
        dense: torch.Tensor,
        model: PreTrainedModel,
        *hidden: torch.Tensor,
    ) -> torch.Tensor:
        per_chunk = max(rows_per_chunk(model, dense.device, _NUM_LOGITS), _LEAST_ROWS)
        totals = torch.zeros(len(hidden), dtype=torch.float32, device=dense.device)
        gradients = [torch.empty_like(each) for each in hidden]
        for begin in range(0, len(dense), per_chunk):
            rows = slice(begin, begin + per_chunk)
            wanted = final_logits(model, dense[rows]).float().log_softmax(dim=1)
            shares = wanted.exp()
            for at, (each, gradient) in enumerate(zip(hidden, gradients, strict=True)):
                leaf = each[rows].detach().requires_grad_()
                with torch.enable_grad():
                    logits = final_logits(model, leaf)
                log_shares = logits.detach().float().log_softmax(dim=1)
                totals[at] += torch.dot(shares.flatten(), (wanted - log_shares).flatten())
                of_logits = log_shares.exp_().sub_(shares)
                gradient[rows] = torch.autograd.grad(logits, leaf, of_logits.to(logits.dtype))[0]
        ctx.save_for_backward(*gradients)
        return totals

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - as above
        *outputs: torch.Tensor,
    ) -> tuple[torch.Tensor | None, ...]:
        [of_totals] = outputs
        parts = zip(ctx.saved_tensors, of_totals, strict=True)
        return None, None, *(gradient * of.to(gradient.dtype) for gradient, of in parts)
