"""Kernels for products of a matrix and a few rows, of which torch has two on a CPU.

oneDNN's are made for many rows. torch's own read the weights once for each row, and are faster for
one row on some processors. Their rounding differs slightly.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from app.engine.tuning import Tuner, size_of
from pruning.models.blocks import block_list

ONE_DNN, NATIVE = "oneDNN", "torch's own"
_MAX_ROWS = 8  # torch's own take as long for each row as for the first
_SAMPLE_BYTES = 64 * 2**20  # of weights that are read for a choice, more than a cache holds


class RowKernels:
    """The kernels of one model's products, chosen by the number of rows."""

    def __init__(self, model: PreTrainedModel, tuner: Tuner) -> None:
        self._tuner = tuner
        self._weights = list(_sample(model)) if model.device.type == "cpu" else []

    def for_rows(self, num_rows: int) -> AbstractContextManager[None]:
        """A context in which products of so many rows are as fast as they can be."""
        if num_rows > _MAX_ROWS or not self._weights:
            return nullcontext()
        size, first = size_of(num_rows), self._weights[0]

        def products() -> None:
            for weight in self._weights:
                linear(weight.new_ones(size, weight.shape[1]), weight)

        def native_products() -> None:
            with vector_kernels():
                products()

        ways = {ONE_DNN: products, NATIVE: native_products}
        way = self._tuner.fastest("products of rows", (size, *first.shape), first.dtype, ways)
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


def _sample(model: PreTrainedModel) -> Iterator[torch.Tensor]:
    """Weights of plain linear layers of the first blocks."""
    num_bytes = 0
    modules = (module for block in block_list(model) for module in block.modules())
    for module in (each for each in modules if type(each) is nn.Linear):
        if num_bytes >= _SAMPLE_BYTES:
            return
        num_bytes += module.weight.nbytes
        yield module.weight.detach()
