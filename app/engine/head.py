"""The head of a model: hidden states to logits, by the faster of two products on a CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.compiled.product import PRODUCTS_OF_ROWS, has_room, product_of_rows
from app.engine.tuning import Tuner, size_of
from pruning.models.blocks import final_logits, softcapped

# Two ways to compute logits.
TORCH, COMPILED_HEAD = "torch's head", "compiled head"


class Head:
    """The head of a model, and what follows it."""

    def __init__(self, model: PreTrainedModel, tuner: Tuner) -> None:
        self._model = model
        self._tuner = tuner
        head: Any = model.get_output_embeddings()
        self._weight = head.weight if tuner.chooses and _is_plain(head) else None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Float32 logits ``[rows, vocab]`` of hidden states ``[rows, width]``."""
        weight = self._weight

        def torch_head() -> torch.Tensor:
            return final_logits(self._model, hidden)

        if (
            weight is None
            or not has_room(*hidden.shape)
            or not PRODUCTS_OF_ROWS[weight.dtype].is_ready()
        ):
            return torch_head().float()
        ways: dict[str, Callable[[], torch.Tensor]] = {
            TORCH: torch_head,
            COMPILED_HEAD: lambda: softcapped(self._model, product_of_rows(hidden, weight)),
        }
        shape = (size_of(len(hidden)), *weight.shape)
        return ways[self._tuner.fastest("head", shape, hidden.dtype, ways)]().float()


def _is_plain(head: nn.Module) -> bool:
    """Whether the head is a linear layer without a bias, of a type that is compiled here."""
    return (
        type(head) is nn.Linear
        and getattr(head, "bias", None) is None
        and head.weight.device.type == "cpu"
        and head.weight.dtype in PRODUCTS_OF_ROWS
        and not head._forward_hooks
    )
