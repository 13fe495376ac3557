"""Weight-only quantisation of a model's blocks to 8 or 4 bits, which measures its cost in quality.

Rounds the weights with torchao and needs no calibration text. Needs the extra ``quantize``.
"""

from collections.abc import Callable
from importlib.util import find_spec
from math import gcd

import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.models.architectures import ARCHITECTURES, UnsupportedConfig
from pruning.models.blocks import block_list, num_blocks, view
from pruning.spec.prune import Quantize

MAX_GROUP = 128  # inputs of int4 that share a scale, as in GPTQ and AWQ
_MIN_GROUP = 16


class QuantizeUnavailable(RuntimeError):
    """torchao is not installed."""


class CannotQuantize(UnsupportedConfig):
    """The blocks of the model have weights that cannot be quantised."""

    param = "quantize"


def require_torchao() -> None:
    """Raise ``QuantizeUnavailable`` unless torchao is installed. Call before loading a model."""
    if find_spec("torchao") is None:
        raise QuantizeUnavailable(
            "quantised weights need torchao: run `make setup`, or pip install '.[quantize]' in the "
            "checkout"
        )


def check_quantizable(model_type: str) -> None:
    """Raise ``CannotQuantize`` for a family whose blocks have other matrices than linear layers."""
    if not ARCHITECTURES[model_type].is_linear:
        linear = ", ".join(sorted(name for name, row in ARCHITECTURES.items() if row.is_linear))
        raise CannotQuantize(
            f"models of type {model_type!r} cannot be quantised, as not all of their weights "
            f"belong to linear layers: leave quantize out, or choose one of {linear}"
        )


@torch.no_grad()
def quantized(model: PreTrainedModel, weights: Quantize) -> PreTrainedModel:
    """A view of ``model`` whose blocks have quantised linear layers.

    int8 has one scale per output channel, int4 one per group of at most 128 inputs; both are
    symmetric. Embeddings, norms and head are shared with ``model``, which does not change. Raises
    ``QuantizeUnavailable`` or ``CannotQuantize``.
    """
    require_torchao()
    check_quantizable(model.config.model_type)
    from torchao.quantization import (  # noqa: PLC0415 - an extra, and slow to import
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
        quantize_,
    )

    pruned = view(model, range(num_blocks(model)))
    blocks = block_list(pruned)
    if weights is Quantize.INT8:
        quantize_(blocks, Int8WeightOnlyConfig())
        return pruned
    linears = [module for module in blocks.modules() if isinstance(module, nn.Linear)]
    for size in {_group_size(linear) for linear in linears}:
        int4 = torch.int4  # type: ignore[attr-defined] # missing in the stubs
        config = IntxWeightOnlyConfig(weight_dtype=int4, granularity=PerGroup(size))
        quantize_(blocks, config, _has_group(size))
    return pruned


def _group_size(linear: nn.Linear) -> int:
    size = gcd(linear.in_features, MAX_GROUP)
    if size < _MIN_GROUP:
        raise CannotQuantize(
            f"int4 needs groups of at least {_MIN_GROUP} inputs that share a scale, and "
            f"{linear.in_features} inputs cannot be divided into such groups: choose int8"
        )
    return size


def _has_group(size: int) -> Callable[[nn.Module, str], bool]:
    return lambda module, _name: isinstance(module, nn.Linear) and _group_size(module) == size
