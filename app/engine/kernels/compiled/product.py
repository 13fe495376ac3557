"""A product of a few rows and weights, which are read once, near the rate of the memory."""

from array import array
from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
import torch
from numba import carray

from app.engine.kernels.compiled.arithmetic import (
    array_like,
    as_float,
    as_number_of,
    bytes_at,
    floats_at,
    halves_at,
    own_floats,
    own_halves,
)
from app.engine.kernels.compiled.openmp import (
    MAX_ROOM_BYTES,
    ParallelFunction,
    barrier,
    inlined,
    pointer_to,
    share,
)
from app.engine.kernels.compiled.products import products

# Addresses of what a product reads and writes, and numbers.
_PRODUCT = np.dtype([
    (name, np.int64)
    for name in ("activations", "values", "scales", "out", "inputs", "sums",
                 "factors", "rows", "width", "outputs")
])  # fmt: skip
_to_product = pointer_to(numba.from_dtype(_PRODUCT))


def has_room(rows: int, width: int) -> bool:
    """Whether each thread has room for the inputs of so many rows."""
    return rows <= max_rows(width)


def max_rows(width: int) -> int:
    """The rows of inputs for which each thread has room."""
    return MAX_ROOM_BYTES // (8 * torch.get_num_threads() * width)


def float32_product(address: int) -> None:
    """Run the product whose fields are at this address."""
    _run(carray(_to_product(address), 1)[0], floats_at(address, 1, 1))


def bfloat16_product(address: int) -> None:
    """The same on bfloat16."""
    _run(carray(_to_product(address), 1)[0], halves_at(address, 1, 1))


@inlined
def _run(product: Any, like: Any) -> None:
    rows, width, outputs = product.rows, product.width, product.outputs
    activations = array_like(like, product.activations, rows, width)
    inputs = own_floats(product.inputs, rows, width)
    room = own_halves(product.factors, rows, width)
    for row in range(rows):
        for at in range(width):
            inputs[row, at] = as_float(activations[row, at])
    sums = floats_at(product.sums, rows, outputs)
    first, last = share(outputs)
    if product.scales:
        products(bytes_at(product.values, outputs, width), inputs, room, first, last, sums)
    else:
        weights = array_like(like, product.values, outputs, width)
        products(weights, inputs, room, first, last, sums)
    scales = array_like(like, product.scales, 1, outputs)
    out = array_like(like, product.out, rows, outputs)
    for row in range(rows):
        for at in range(first, last):
            scale = as_float(scales[0, at]) if product.scales else np.float32(1)
            out[row, at] = as_number_of(out, sums[row, at] * scale)
    barrier()


PRODUCTS_OF_ROWS: Mapping[torch.dtype, ParallelFunction] = {
    torch.float32: ParallelFunction(float32_product),
    torch.bfloat16: ParallelFunction(bfloat16_product),
}


def product_of_rows(
    activations: torch.Tensor, values: torch.Tensor, scales: torch.Tensor | None = None
) -> torch.Tensor:
    """``[rows, outputs]`` from activations ``[rows, width]``, in float32 inside. The weights are
    int8 with scales, or of the type of the activations.

    Raises ``NotImplementedError`` on other devices, for other types, and until it is compiled.
    """
    function = PRODUCTS_OF_ROWS.get(activations.dtype)
    if function is None or activations.device.type != "cpu" or not function.is_ready:
        raise NotImplementedError(f"{activations.dtype} on {activations.device.type}")
    activations, values = activations.contiguous(), values.contiguous()
    scales = None if scales is None else scales.contiguous()
    (rows, width), outputs = activations.shape, len(values)
    out = activations.new_empty(rows, outputs)
    num_inputs = torch.get_num_threads() * rows * width
    room = torch.empty(2 * num_inputs + rows * outputs)
    tensors = (activations, values, scales, out, room)
    addresses = [0 if each is None else each.data_ptr() for each in tensors]
    sums = room.data_ptr() + 4 * num_inputs
    factors = sums + 4 * rows * outputs
    fields = array("q", (*addresses, sums, factors, rows, width, outputs))
    function(fields.buffer_info()[0])
    return out
