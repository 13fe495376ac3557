"""The head of a model: hidden states to logits, by the faster of two products on a CPU."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.autotuning import Autotuner, Run, Trial, key_of, size_of, sizes_to
from app.engine.kernels.compiled.product import PRODUCTS_OF_ROWS, max_rows, product_of_rows
from app.engine.step import Step
from pruning.models.blocks import final_logits, softcapped
from pruning.models.rounding import QuantizedLinear

# Two ways to compute logits.
TORCH, COMPILED_HEAD = "torch's head", "compiled head"


class Head:
    """The head of a model, and what follows it."""

    def __init__(self, model: PreTrainedModel, tuner: Autotuner) -> None:
        self._model = model
        self._tuner = tuner
        self._head: Any = model.get_output_embeddings()
        self._weight = self._head.weight if tuner.chooses and _is_plain(self._head) else None
        # As blocks have them: a plain and a quantized head are compared by their times
        self._name = "quantized head" if type(self._head) is QuantizedLinear else "head"

    def __call__(self, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        """Float32 logits ``[rows, vocab]`` of hidden states ``[rows, width]``."""
        if step.is_reproducible:
            return self._reproducible(hidden, step)
        weight, kernel, num_rows = self._weight, TORCH, len(hidden)
        if weight is not None and self.is_compiled and num_rows <= max_rows(hidden.shape[1]):
            kernel = self._tuner.kernel(self._key(num_rows), (TORCH, COMPILED_HEAD))
        step.kernels[f"{self._name} of {size_of(num_rows)}"] = kernel
        if kernel == COMPILED_HEAD and weight is not None:
            return self._compiled(hidden, weight).float()
        return final_logits(self._model, hidden).float()

    def _reproducible(self, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        """Logits of each row that depend on no other row."""
        head, function = self._head, PRODUCTS_OF_ROWS.get(hidden.dtype)
        is_int8 = type(head) is QuantizedLinear and head.bias is None and head.scales.shape[1] == 1
        if function is None or not function.is_ready or not (is_int8 or self.is_compiled):
            step.kernels[self._name] = "one row at a time"
            return torch.cat([final_logits(self._model, row) for row in hidden.split(1)]).float()
        step.kernels[self._name] = f"{COMPILED_HEAD}, reproducible"
        weight, scales = (head.values, head.scales) if is_int8 else (head.weight, None)
        parts = hidden.split(max_rows(hidden.shape[1]))
        logits = torch.cat([product_of_rows(part, weight, scales) for part in parts])
        return softcapped(self._model, logits).float()

    @property
    def is_compiled(self) -> bool:
        """Whether it has a compiled form, and that is ready."""
        return self._weight is not None and PRODUCTS_OF_ROWS[self._weight.dtype].is_ready

    def trials(self, largest: int) -> Iterator[Trial]:
        """Trials for each size of rows up to this one."""
        weight = self._weight
        if weight is None or not self.is_compiled:
            return
        for rows in sizes_to(largest):
            if rows <= max_rows(weight.shape[1]):
                yield Trial(self._key(rows), partial(self._runs, weight, rows))

    def _runs(self, weight: torch.Tensor, rows: int) -> Mapping[str, Run]:
        hidden = torch.randn(rows, weight.shape[1]).to(weight.dtype)
        return {
            TORCH: partial(final_logits, self._model, hidden),
            COMPILED_HEAD: partial(self._compiled, hidden, weight),
        }

    def _compiled(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return softcapped(self._model, product_of_rows(hidden, weight))

    def _key(self, num_rows: int) -> str:
        assert self._weight is not None
        return key_of(f"head of {size_of(num_rows)},", self._weight, *self._weight.shape)


def _is_plain(head: nn.Module) -> bool:
    """Whether the head is a linear layer without a bias, of a type that is compiled here."""
    return (
        type(head) is nn.Linear
        and getattr(head, "bias", None) is None
        and head.weight.device.type == "cpu"
        and head.weight.dtype in PRODUCTS_OF_ROWS
        and not head._forward_hooks
    )
