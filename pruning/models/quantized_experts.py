"""The experts of a mixture with rounded weights: two linear layers for each expert.

Their products are those of any other rounded layer, so an output of an expert has its own scale.
"""

import copy
from typing import Any

import torch
from torch import nn

from pruning.models.rounding import QuantizedLinear
from pruning.spec.prune import Quantize

MATRICES = ("gate_up_proj", "down_proj")  # [experts, outputs, inputs] each, or transposed


def are_experts(module: nn.Module) -> bool:
    """Whether the parameters of this module are the matrices of experts."""
    return all(name in module._parameters for name in MATRICES)


class QuantizedExperts(nn.Module):
    """Computes what the experts do that it was made of. It shares their biases."""

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
