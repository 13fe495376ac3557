"""Quantization of a model's blocks to 8 or 4 bits, without calibration text.

Measured, served and exported models with quantized weights are made here.
"""

from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.models.architectures import check_quantizable
from pruning.models.blocks import block_list, num_blocks, view
from pruning.models.rounding import MATRICES, QuantizedExperts, QuantizedLinear, are_experts
from pruning.spec.prune import Quantize


@torch.no_grad()
def quantized(model: PreTrainedModel, weights: Quantize) -> PreTrainedModel:
    """A view of ``model`` whose blocks have quantized linear layers and experts.

    Embeddings, norms, biases, routers and head are shared with ``model``, which does not change.
    Views of the result share its weights in turn. Raises ``CannotQuantize``.
    """
    check_quantizable(model.config.model_type)
    made = view(model, range(num_blocks(model)))
    for parent in list(block_list(made).modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                setattr(parent, name, QuantizedLinear(child.weight, child.bias, weights))
            elif are_experts(child):
                setattr(parent, name, QuantizedExperts(child, weights))
    return made


def int8_form(model: PreTrainedModel) -> PreTrainedModel:
    """The view of ``model`` that is served as int8: its head is quantized as well.

    A small model spends a fifth of a step in its head. Exported models keep it plain, as few other
    programs read one of int8. Raises ``CannotQuantize``.
    """
    return _with_head(model, Quantize.INT8)


def w8a8_form(model: PreTrainedModel) -> PreTrainedModel:
    """The same whose linear layers, head and experts also round their inputs to int8 by token.

    Raises ``CannotQuantize``.
    """
    return _with_head(model, Quantize.W8A8)


def _with_head(model: PreTrainedModel, weights: Quantize) -> PreTrainedModel:
    made = quantized(model, weights)
    head = made.get_output_embeddings()
    if type(head) is nn.Linear:
        made.set_output_embeddings(QuantizedLinear(head.weight, head.bias, weights))
    return made


def quantized_layers(model: PreTrainedModel) -> list[QuantizedLinear]:
    """All quantized linear layers of the model, those of experts among them."""
    return [module for module in model.modules() if isinstance(module, QuantizedLinear)]


def other_parameters(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters by name that are not the integers and scales of a quantized layer."""
    for name, parameter in model.named_parameters():
        if name.rpartition(".")[2] not in ("values", "scales"):
            yield name, parameter


def plain_weights(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Every parameter of a model with quantized layers as the plain model has it, by its name."""
    of_experts: set[nn.Module] = set()
    for name, module in model.named_modules():
        if isinstance(module, QuantizedExperts):
            of_experts.update(module.modules())
            for matrix in MATRICES:
                yield f"{name}.{matrix}", module.dequantized(matrix)
        elif isinstance(module, QuantizedLinear) and module not in of_experts:
            yield f"{name}.weight", module.dequantized()
    yield from other_parameters(model)
