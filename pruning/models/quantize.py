"""A model whose blocks have weights of 8 or 4 bits: what quantisation costs on top of pruning.

Weights alone, by torchao, and from the weights alone: no text is needed. Needs the extra
``quantize``.
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

MAX_GROUP = 128  # weights of int4 that share a scale, at most: as GPTQ and AWQ have it
_MIN_GROUP = 16


class QuantizeUnavailable(RuntimeError):
    """torchao is not installed."""


class CannotQuantize(UnsupportedConfig):
    """A model with weights in its blocks that nobody here can quantise."""

    param = "quantize"


def require_torchao() -> None:
    """Raises ``QuantizeUnavailable`` before anything is loaded for nothing."""
    if find_spec("torchao") is None:
        raise QuantizeUnavailable(
            "quantised weights need torchao installed: pip install 'sleb-serve[quantize]'"
        )


def check_quantizable(model_type: str) -> None:
    """Raises ``CannotQuantize`` for a known family whose blocks are not of linear layers alone."""
    if not ARCHITECTURES[model_type].is_linear:
        able = ", ".join(sorted(name for name, row in ARCHITECTURES.items() if row.is_linear))
        raise CannotQuantize(
            f"models of type {model_type!r} cannot be quantised here, as not all of their weights "
            f"are those of linear layers: leave quantize out, or choose one of {able}"
        )


@torch.no_grad()
def quantized(model: PreTrainedModel, weights: Quantize) -> PreTrainedModel:
    """A view of all blocks of ``model`` whose linear layers have quantised weights of their own.

    int8 has a scale for each output channel, int4 one for each group of up to 128 inputs; both are
    symmetric. Embeddings, norms and head are those of ``model``, which stays as it was to the last
    bit. Raises ``QuantizeUnavailable`` or ``CannotQuantize``.
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
    for size in {_group_size(its) for its in blocks.modules() if isinstance(its, nn.Linear)}:
        int4 = torch.int4  # type: ignore[attr-defined] # the stubs do not know it
        config = IntxWeightOnlyConfig(weight_dtype=int4, granularity=PerGroup(size))
        quantize_(blocks, config, _of_group(size))
    return pruned


def _group_size(linear: nn.Linear) -> int:
    size = gcd(linear.in_features, MAX_GROUP)
    if size < _MIN_GROUP:
        raise CannotQuantize(
            f"int4 needs groups of {_MIN_GROUP} inputs or more that share a scale, and "
            f"{linear.in_features} inputs cannot be divided into such: choose int8"
        )
    return size


def _of_group(size: int) -> Callable[[nn.Module, str], bool]:
    return lambda module, _name: isinstance(module, nn.Linear) and _group_size(module) == size
