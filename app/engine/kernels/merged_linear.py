"""Linear layers of the same input as one product: fewer and larger products are faster.

The weights of the layers become parts of one tensor, side by side, and so do quantized ones. Only
biases are copied. Layers of other kinds run one after the other.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import nn
from torch.nn.functional import linear

from pruning.models.rounding import Product, QuantizedLinear

Project = Callable[[torch.Tensor], torch.Tensor]  # [tokens, width] to [tokens, outputs]


@dataclass(frozen=True)
class MergedLinear:
    """Linear layers whose outputs stand side by side."""

    weight: torch.Tensor  # [outputs of all, inputs]
    bias: torch.Tensor | None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return linear(hidden, self.weight, self.bias)


@dataclass(frozen=True)
class MergedQuantized:
    """Quantized linear layers whose outputs stand side by side."""

    values: torch.Tensor  # [outputs of all, inputs]
    scales: torch.Tensor  # [outputs of all, groups]
    bias: torch.Tensor | None
    product: Product  # of the layer with the most outputs

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        out = self.product(hidden, self.values, self.scales)
        return out if self.bias is None else out + self.bias


@dataclass(frozen=True)
class GatedFeedForward:
    """The feed-forward part of most families: one projection is the gate of another."""

    gate_and_up: Project
    activation: Callable[[torch.Tensor], torch.Tensor]
    down: nn.Module

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_and_up(hidden).chunk(2, dim=-1)
        out: torch.Tensor = self.down(self.activation(gate).mul_(up))
        return out


def side_by_side(layers: Sequence[nn.Module]) -> Project:
    """The layers as one: ``[tokens, width]`` to their outputs ``[tokens, outputs of all]``."""
    return _merged(layers) or (lambda hidden: torch.cat([layer(hidden) for layer in layers], -1))


def feed_forward(module: nn.Module) -> Project:
    """The feed-forward part with its gate in one product with what it gates, if it has one."""
    parts: dict[str, Any] = dict(module.named_children())
    names = tuple(sorted(parts))
    if names == ("activation_fn", "down_proj", "gate_up_proj"):
        merged = side_by_side([parts["gate_up_proj"]])
        return GatedFeedForward(merged, parts["activation_fn"], parts["down_proj"])
    if names != ("act_fn", "down_proj", "gate_proj", "up_proj"):
        return module
    gate, up = parts["gate_proj"], parts["up_proj"]
    both = _merged([gate, up])
    if both is None or gate.out_features != up.out_features:
        return module
    return GatedFeedForward(both, parts["act_fn"], parts["down_proj"])


def _merged(layers: Sequence[nn.Module]) -> Project | None:
    """One layer on the same parameters; None unless all are of one kind and alike."""
    plain = [layer for layer in layers if _is_plain(layer)]
    if len(plain) == len(layers):
        return _merged_plain(plain)
    quantized = [layer for layer in layers if type(layer) is QuantizedLinear]
    return _merged_quantized(quantized) if len(quantized) == len(layers) else None


def _merged_plain(layers: Sequence[nn.Linear]) -> MergedLinear | None:
    if len({(each.in_features, each.weight.dtype, each.bias is None) for each in layers}) != 1:
        return None
    return MergedLinear(_joined([layer.weight for layer in layers]), _biases(layers))


def _merged_quantized(layers: Sequence[QuantizedLinear]) -> MergedQuantized | None:
    alike = {
        (each.in_features, each.scales.shape[1], each.scales.dtype, each.bias is None)
        for each in layers
    }
    if len(alike) != 1 or any(layer._forward_hooks for layer in layers):
        return None
    return MergedQuantized(
        _joined([layer.values for layer in layers]),
        _joined([layer.scales for layer in layers]),
        _biases(layers),
        max(layers, key=lambda layer: layer.out_features).product,
    )


def _biases(layers: Sequence[nn.Linear] | Sequence[QuantizedLinear]) -> torch.Tensor | None:
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return torch.cat(biases) if biases else None


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a linear layer with a tensor of the usual kind, and nothing else happens."""
    return (
        type(layer) is nn.Linear
        and not layer._forward_hooks
        and type(layer.weight.data) is torch.Tensor
    )


def _joined(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor along the first dimension, of which these parameters are parts from now on."""
    rows = [len(parameter) for parameter in parameters]
    first = parameters[0]
    starts = [each.data_ptr() - first.data_ptr() for each in parameters]
    row_bytes = first[0].numel() * first.element_size()
    in_place = [sum(rows[:at]) * row_bytes for at in range(len(rows))]
    storages = {each.untyped_storage().data_ptr() for each in parameters}
    if starts == in_place and len(storages) == 1:
        return first.detach().as_strided((sum(rows), *first.shape[1:]), first.stride())
    whole = torch.cat([parameter.detach() for parameter in parameters])
    for part, parameter in zip(whole.split(rows), parameters, strict=True):
        parameter.data = part
    return whole
