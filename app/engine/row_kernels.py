"""Kernels for products of a matrix and a few rows, of which torch has two on a CPU.

oneDNN's are made for many rows. torch's own read the weights once for each row, and are faster for
one row on some processors. Their rounding differs slightly.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeGuard

import torch
from torch import nn
from transformers import PreTrainedModel

from app.engine.tuning import Tuner, size_of
from pruning.models.blocks import block_list
from pruning.models.rounding import QuantizedLinear

ONE_DNN, NATIVE = "oneDNN", "torch's own"
_MAX_ROWS = 8  # torch's own take as long for each row as for the first
_SAMPLE_BYTES = 64 * 2**20  # of weights that are read for a choice, more than a cache holds
_Layer = nn.Linear | QuantizedLinear


class RowKernels:
    """The kernels of one model's products, chosen by the number of rows."""

    def __init__(self, model: PreTrainedModel, tuner: Tuner) -> None:
        self._tuner = tuner
        self._layers = list(_sample(model)) if model.device.type == "cpu" else []

    def for_rows(self, num_rows: int) -> AbstractContextManager[None]:
        """A context in which products of so many rows are as fast as they can be."""
        if num_rows > _MAX_ROWS or not self._layers:
            return nullcontext()
        size, first = size_of(num_rows), self._layers[0]

        def products() -> None:
            for layer in self._layers:
                layer(_floats(layer).new_ones(size, layer.in_features))

        def native_products() -> None:
            with vector_kernels():
                products()

        ways = {ONE_DNN: products, NATIVE: native_products}
        shape = (size, first.out_features, first.in_features)
        kind = "" if isinstance(first, nn.Linear) else "quantized "
        way = self._tuner.fastest(f"{kind}products of rows", shape, _floats(first).dtype, ways)
        return vector_kernels() if way == NATIVE else nullcontext()


@contextmanager
def vector_kernels() -> Iterator[None]:
    """Use torch's own kernels for products.

    The switch applies to the whole process: other work meanwhile is correct, and may be slower.
    """
    one_dnn: Any = torch.backends.mkldnn
    if not one_dnn.enabled:
        yield
        return
    one_dnn.enabled = False
    try:
        yield
    finally:
        one_dnn.enabled = True


def _sample(model: PreTrainedModel) -> Iterator[_Layer]:
    """Linear layers of the first blocks, plain or quantized, and the head."""
    num_bytes = 0
    modules = (module for block in block_list(model) for module in block.modules())
    for module in modules:
        if num_bytes < _SAMPLE_BYTES and _is_sampled(module):
            num_bytes += sum(parameter.nbytes for parameter in module.parameters())
            yield module
    head = model.get_output_embeddings()
    if head is not None and _is_sampled(head):
        yield head


def _is_sampled(module: nn.Module) -> TypeGuard[_Layer]:
    return type(module) in (nn.Linear, QuantizedLinear)


def _floats(layer: _Layer) -> torch.Tensor:
    """A tensor of the layer with the type of its activations."""
    return layer.scales if isinstance(layer, QuantizedLinear) else layer.weight
