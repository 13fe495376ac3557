"""Matrices rounded to 8 or 4 bits with symmetric scales, and layers and experts that have them.

int8 has one scale for each output, int4 one for each group of at most 128 inputs. w8a8 is int8
whose layers also round their inputs, with one scale for each row. Rounding needs no text. Every
use of rounded weights, measured, served or exported, rounds them here.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import nn

from pruning.models.architectures import CannotQuantize
from pruning.spec.prune import Quantize

MAX_GROUP = 128  # inputs of int4 that share a scale, as in GPTQ and AWQ
MIN_GROUP = 16
_MAX_VALUE = 127  # of a rounded activation
_EXACT_INPUTS = 1024  # float32 has every sum of so many products of two int8 numbers

# The matrices of experts, [experts, outputs, inputs] each, or transposed
MATRICES = ("gate_up_proj", "down_proj")

# Activations [rows, inputs], values and scales of the weights to [rows, outputs].
Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, eq=False)
class Rounded:
    """A matrix as integers and scales: ``values [outputs, inputs]``, ``scales [outputs, groups]``.

    ``scales`` have the dtype of the matrix. Each group is a run of ``inputs / groups`` inputs.
    """

    values: torch.Tensor
    scales: torch.Tensor

    def dequantized(self) -> torch.Tensor:
        return dequantized(self.values, self.scales)


def group_size(num_inputs: int, weights: Quantize) -> int:
    """The inputs that share a scale. Raises ``CannotQuantize``."""
    if weights.num_bits == 8:
        return num_inputs
    size = gcd(num_inputs, MAX_GROUP)
    if size < MIN_GROUP:
        raise CannotQuantize(
            f"int4 needs quantization groups of at least {MIN_GROUP} inputs, and "
            f"{num_inputs} inputs cannot be divided into such groups: use int8"
        )
    return size


@torch.no_grad()
def rounded(weight: torch.Tensor, weights: Quantize) -> Rounded:
    """Round ``weight [outputs, inputs]`` to the nearest multiples of its scales.

    The largest magnitude of a group is half a step beyond the integers. Raises ``CannotQuantize``.
    """
    num_outputs, num_inputs = weight.shape
    levels = 2 ** (weights.num_bits - 1)
    groups = weight.float().reshape(num_outputs, -1, group_size(num_inputs, weights))
    tops = groups.abs().amax(dim=-1)
    scales = (tops / (levels - 0.5)).to(weight.dtype).clamp_min(torch.finfo(weight.dtype).tiny)
    values = (groups / scales.float()[..., None]).round_().clamp_(-levels, levels - 1)
    return Rounded(values.to(torch.int8).reshape(weight.shape), scales)


def dequantized(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The matrix ``[outputs, inputs]`` that these integers and scales mean."""
    groups = values.view(len(values), scales.shape[1], -1)
    return (groups * scales[..., None]).view(values.shape)


def dequantized_product(
    activations: torch.Tensor, values: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """The product with the plain matrix, which is made anew at each call."""
    return nn.functional.linear(activations, dequantized(values, scales))


def rounded_rows(activations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round ``activations [rows, inputs]`` to int8, and return the step ``[rows, 1]`` of each row.

    The steps are float32, and the largest magnitude of a row is 127 of them.
    """
    rows = activations.float()
    steps = rows.abs().amax(dim=-1, keepdim=True) / _MAX_VALUE
    steps = steps.clamp_min(torch.finfo(torch.float32).tiny)
    return (rows / steps).round_().to(torch.int8), steps


def exact_sums(rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The product of int8 ``rows [rows, inputs]`` and ``values [outputs, inputs]``, as int32."""
    sums = torch.zeros(len(rows), len(values), dtype=torch.int32, device=rows.device)
    for left, right in zip(
        rows.split(_EXACT_INPUTS, dim=1), values.split(_EXACT_INPUTS, dim=1), strict=True
    ):
        sums += nn.functional.linear(left.float(), right.float()).to(torch.int32)
    return sums


def product_of_rounded_rows(
    activations: torch.Tensor, values: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """The product with activations that are rounded row by row. A row does not depend on others.

    ``scales`` are ``[outputs, 1]``.
    """
    rows, steps = rounded_rows(activations)
    sums = exact_sums(rows, values).float()
    return (sums * steps * scales.float()[:, 0]).to(activations.dtype)


class QuantizedLinear(nn.Module):
    """A linear layer of rounded weights, and of rounded inputs if it is a layer of w8a8."""

    values: nn.Parameter
    scales: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight: torch.Tensor, bias: nn.Parameter | None, weights: Quantize) -> None:
        super().__init__()
        self.weights = weights
        rounds_inputs = weights is Quantize.W8A8
        self.product: Product = product_of_rounded_rows if rounds_inputs else dequantized_product
        self.register_parameter("bias", bias)
        self.set_weight(weight)

    def set_weight(self, weight: torch.Tensor) -> None:
        """Round ``weight [outputs, inputs]`` in place of the layer's own."""
        quantized = rounded(weight, self.weights)
        self.values = nn.Parameter(quantized.values, requires_grad=False)
        self.scales = nn.Parameter(quantized.scales, requires_grad=False)

    @property
    def out_features(self) -> int:
        """As ``nn.Linear`` has it."""
        return len(self.values)

    @property
    def in_features(self) -> int:
        """As ``nn.Linear`` has it."""
        return self.values.shape[1]

    def dequantized(self) -> torch.Tensor:
        return dequantized(self.values, self.scales)

    def forward(self, activations: torch.Tensor) -> torch.Tensor:
        """Map ``[..., inputs]`` to ``[..., outputs]``."""
        rows = activations.reshape(-1, activations.shape[-1])
        out = self.product(rows, self.values, self.scales)
        if self.bias is not None:
            out = out + self.bias
        return out.view(*activations.shape[:-1], -1)


def are_experts(module: nn.Module) -> bool:
    """Whether the parameters of this module are the matrices of experts."""
    return all(name in module._parameters for name in MATRICES)


class QuantizedExperts(nn.Module):
    """The experts of a mixture: two rounded linear layers for each expert, with their biases.

    Their products are those of any other rounded layer, so an output of an expert has its own
    scale.
    """

    def __init__(self, experts: nn.Module, weights: Quantize) -> None:
        super().__init__()
        self.weights = weights
        # What else the experts consist of: how a gate works, and its constants
        self.gating: Any = copy.copy(experts)
        self.gating._parameters = {}
        self.is_transposed = bool(self.gating.is_transposed)  # [experts, inputs, outputs]
        for name in MATRICES:
            self.set_weight(name, experts.get_parameter(name))
            self.register_parameter(f"{name}_bias", experts._parameters.get(f"{name}_bias"))

    def set_weight(self, name: str, weight: torch.Tensor) -> None:
        """Round the matrices of all experts in place of those of this name."""
        matrices = weight.transpose(1, 2) if self.is_transposed else weight
        layers = (QuantizedLinear(each.contiguous(), None, self.weights) for each in matrices)
        setattr(self, name, nn.ModuleList(layers))

    def dequantized(self, name: str) -> torch.Tensor:
        """The matrices of all experts, as the plain model has them."""
        layers: Any = self.get_submodule(name)
        weight = torch.stack([layer.dequantized() for layer in layers])
        return weight.transpose(1, 2) if self.is_transposed else weight

    def forward(
        self, hidden: torch.Tensor, chosen: torch.Tensor, factors: torch.Tensor
    ) -> torch.Tensor:
        """Map ``hidden [tokens, width]``, of which experts ``chosen [tokens, k]`` see each token.

        What they make of it is multiplied by ``factors [tokens, k]`` and added up.
        """
        dtype = torch.result_type(hidden, factors)
        outputs = hidden.new_zeros((*chosen.shape, hidden.shape[-1]), dtype=dtype)
        for expert in chosen.unique().tolist():
            token, place = torch.where(chosen == expert)
            gated = self.gating._apply_gate(self._product("gate_up_proj", expert, hidden[token]))
            out = self._product("down_proj", expert, gated)
            outputs[token, place] = out * factors[token, place, None]
        return outputs.sum(1).to(hidden.dtype)

    def _product(self, name: str, expert: int, rows: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.get_submodule(f"{name}.{expert}")(rows)
        bias = self._parameters[f"{name}_bias"]
        return out if bias is None else out + bias[expert]
