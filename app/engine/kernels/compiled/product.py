"""Products of a matrix and a few rows, for which it is read once, near the rate of the memory."""

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
    itemsize,
    own_floats,
    own_halves,
)
from app.engine.kernels.compiled.numbers import has_pairs
from app.engine.kernels.compiled.openmp import (
    MAX_ROOM_BYTES,
    Floats,
    ParallelFunction,
    barrier,
    by_type,
    compiled,
    inlined,
    pointer_to,
    share,
)
from app.engine.kernels.compiled.tile import TILE, columns_of, write_products, write_row

_COMPUTE_BOUND_ROWS = 16  # rows, whose products take longer than to read the weights from memory
_BLOCK_BYTES = 2**15  # of weights, which stay in a cache of the core for many rows
# Addresses of what a product reads and writes, and numbers.
_PRODUCT = np.dtype([
    (name, np.int64)
    for name in ("activations", "values", "scales", "out", "inputs", "sums",
                 "factors", "rows", "width", "outputs")
])  # fmt: skip
_to_product = pointer_to(numba.from_dtype(_PRODUCT))


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


@compiled
def products(weights: Any, inputs: Floats, room: Any, first: int, last: int, out: Floats) -> None:
    """Write those of ``inputs [rows, width]`` and the rows ``first`` to ``last`` of the weights
    into the same columns of ``out``. Sums are float32. ``room`` is for as many bfloat16.

    The sums of a row have one order, whatever other rows there are.
    """
    _by_tiles(weights, _as_factors(weights, inputs, room), first, last, out)


@compiled
def _product(weights: Any, inputs: Any, at: int, row: int, start: int) -> Any:
    total = np.float32(0)
    for column in range(start, inputs.shape[1]):
        total += as_float(weights[at, column]) * as_float(inputs[row, column])
    return total


@inlined
def _by_tiles(weights: Any, inputs: Any, first: int, last: int, out: Floats) -> None:
    width = inputs.shape[1]
    whole = width - width % columns_of(weights, inputs)
    if last - first < TILE:
        whole = 0
        out[:, first:last] = 0
    else:
        of_block = TILE
        if len(inputs) > _COMPUTE_BOUND_ROWS:
            of_block = max(TILE, _BLOCK_BYTES // (width * itemsize(weights)) // TILE * TILE)
        for start in range(first, last, of_block):
            _write_block(weights, inputs, start, min(start + of_block, last), whole, out)
    for row in range(len(inputs)):
        for at in range(first, last if whole < width else first):
            out[row, at] += _product(weights, inputs, at, row, whole)


@inlined
def _write_block(weights: Any, inputs: Any, start: int, end: int, whole: int, out: Floats) -> None:
    """A block of outputs for all rows. The last tile of either side ends with it, and may begin
    before it. Fewer rows than a tile has are multiplied one by one."""
    rows = len(inputs)
    if rows < TILE:
        for row in range(rows):
            for at in range(start, end, TILE):
                write_row(weights, inputs, min(at, end - TILE), row, whole, out)
        return
    for row in range(0, rows, TILE):
        for at in range(start, end, TILE):
            place = min(at, end - TILE)
            write_products(weights, inputs, place, min(row, rows - TILE), whole, out)


@by_type
def _as_factors(weights: Any, _inputs: Any, room: Any) -> Any:
    """The inputs as products take them: as bfloat16, in this room, if the processor multiplies
    pairs of such numbers and the weights have them."""

    def unchanged(weights: Any, inputs: Any, room: Any) -> Any:
        return inputs

    def rounded(weights: Any, inputs: Any, room: Any) -> Any:
        for row in range(len(inputs)):
            for at in range(inputs.shape[1]):
                room[row, at] = as_number_of(room, inputs[row, at])
        return room

    return rounded if weights.dtype == room.dtype and has_pairs() else unchanged
