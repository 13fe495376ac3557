"""Products of a matrix of int8 weights and many rows, computed as integers.

Activations become int16: up to 15 bits of the largest magnitude in their row, as many as leave the
sums within int32. This is more than bfloat16 has. No plain weights are made.
"""

from array import array
from typing import Any

import numba
import numpy as np
import torch
from numba import carray, types

from app.engine.kernels.compiled.arithmetic import (
    as_float,
    as_number_of,
    bytes_at,
    floats_at,
    halves_at,
)
from app.engine.kernels.compiled.openmp import (
    Floats,
    ParallelFunction,
    barrier,
    compiled,
    get_thread,
    pointer_to,
    share,
)
from app.engine.kernels.compiled.tile import COLUMNS, TILE, add_products

_MAX_COLUMNS = 2048  # in a sum of int32, which then has 13 bits of each activation
_BLOCK_BYTES = 2**17  # of weights, which stay in a cache of the core for all rows
_MAX_LEVEL, _MAX_WEIGHT, _MAX_SUM = 2**15 - 1, 2**7, 2**31 - 1
_TINY = np.finfo(np.float32).tiny

# Addresses of what a product reads and writes, and numbers.
_PRODUCT = np.dtype([
    (name, np.int64)
    for name in (
        "activations", "values", "scales", "out",  # bfloat16, but the values int8
        "integers", "steps",  # room: int16 as the activations, and a float32 for each row
        "totals",  # for each thread float32 of the rows of tiles and the outputs of a block
        "rows", "rows_of_tiles", "width", "outputs", "outputs_of_block",
    )
])  # fmt: skip

_to_product = pointer_to(numba.from_dtype(_PRODUCT))
_to_shorts = pointer_to(types.int16)


def bfloat16_product(address: int) -> None:
    """Run the product whose fields are at this address."""
    product = carray(_to_product(address), 1)[0]
    steps = floats_at(product.steps, 1, product.rows)
    _to_integers(product, halves_at(product.activations, product.rows, product.width), steps)
    barrier()
    _multiply(product, steps)


@compiled
def _to_integers(product: Any, activations: Any, steps: Floats) -> None:
    """Write each row of activations as whole numbers of a step."""
    integers = carray(_to_shorts(product.integers), (product.rows, product.width))
    columns = min(product.width, _MAX_COLUMNS)
    level = np.float32(min(_MAX_LEVEL, _MAX_SUM // (_MAX_WEIGHT * columns)))
    first, last = share(product.rows)
    for row in range(first, last):
        top = np.uint32(0)  # bits of magnitudes have the order of the magnitudes
        for at in range(product.width):
            bits = np.float32(as_float(activations[row, at])).view(np.uint32)
            top = max(top, np.uint32(bits & np.uint32(0x7FFFFFFF)))
        steps[0, row] = max(np.uint32(top).view(np.float32) / level, _TINY)  # NaN stays
        factor = np.float32(1) / steps[0, row]
        for at in range(product.width):
            number = as_float(activations[row, at]) * factor
            whole = np.int32(number + np.float32(_MAX_LEVEL + 1.5))  # rounded: it cuts, above zero
            integers[row, at] = np.int16(whole - np.int32(_MAX_LEVEL + 1))


@compiled
def _multiply(product: Any, steps: Floats) -> None:
    """Write the products with this thread's share of the outputs, a block of them at a time."""
    first, last = share((product.outputs + TILE - 1) // TILE)
    last = min(TILE * last, product.outputs)
    rows, of_block = product.rows_of_tiles, product.outputs_of_block
    room = product.totals + 4 * get_thread() * rows * of_block
    totals = floats_at(room, rows, of_block)
    for start in range(TILE * first, last, of_block):
        end = min(start + of_block, last)
        totals[:] = 0
        for column in range(0, product.width, _MAX_COLUMNS):
            _add_tiles(product, start, end, column, room)
        _add_rest(product, start, end, totals)
        scales = halves_at(product.scales + 2 * start, 1, end - start)
        for row in range(product.rows):
            out = halves_at(product.out + 2 * (row * product.outputs + start), 1, end - start)
            for at in range(end - start):
                total = totals[row, at] * as_float(scales[0, at])
                out[0, at] = as_number_of(out, total * steps[0, row])


@compiled
def _add_tiles(product: Any, start: int, end: int, column: int, totals: int) -> None:
    """Add products with as many columns as a sum of int32 may have, but those of no whole vector.

    Tiles beyond the last row repeat it. Totals have room for that.
    """
    width = min(product.width - column, _MAX_COLUMNS) // COLUMNS * COLUMNS
    values, integers = product.values + column, product.integers + 2 * column
    for row in range(0, product.rows, TILE):
        inputs = _tile(integers, row, product.rows, 2 * product.width)
        for at in range(start, end, TILE):
            weights = _tile(values, at, product.outputs, product.width)
            place = totals + 4 * (row * product.outputs_of_block + at - start)
            add_products(weights, inputs, width, place, product.outputs_of_block)


@compiled
def _add_rest(product: Any, start: int, end: int, totals: Floats) -> None:
    """Add products of the columns that are no whole vector."""
    values = bytes_at(product.values, product.outputs, product.width)
    integers = carray(_to_shorts(product.integers), (product.rows, product.width))
    for column in range(product.width // COLUMNS * COLUMNS, product.width):
        for row in range(product.rows):
            for at in range(start, end):
                number = np.float32(integers[row, column]) * np.float32(values[at, column])
                totals[row, at - start] += number


@compiled
def _tile(address: int, first: int, rows: int, row_bytes: int) -> Any:
    """Addresses of rows, of which the last stands for those beyond it."""
    last = rows - 1
    return (
        address + min(first, last) * row_bytes,
        address + min(first + 1, last) * row_bytes,
        address + min(first + 2, last) * row_bytes,
        address + min(first + 3, last) * row_bytes,
    )


INTEGER_PRODUCT = ParallelFunction(bfloat16_product)


def product_of_integers(
    activations: torch.Tensor, values: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """An integer product by compiled code, for bfloat16 activations on a CPU.

    Raises ``NotImplementedError`` elsewhere, and until it is compiled. Float32 keeps more bits than
    an int16 has.
    """
    kind = (activations.device.type, activations.dtype)
    if kind != ("cpu", torch.bfloat16) or not INTEGER_PRODUCT.is_ready:
        raise NotImplementedError(f"no compiled integer product of {kind[1]} on {kind[0]}")
    activations, values, scales = (each.contiguous() for each in (activations, values, scales))
    (rows, width), outputs = activations.shape, len(values)
    out = activations.new_empty(rows, outputs)
    rows_of_tiles, outputs_of_tiles = (-(-each // TILE) * TILE for each in (rows, outputs))
    of_block = min(outputs_of_tiles, max(TILE, _BLOCK_BYTES // width // TILE * TILE))
    num_totals = torch.get_num_threads() * rows_of_tiles * of_block
    room = torch.empty(num_totals + rows + (rows * width + 1) // 2)  # float32
    steps = room.data_ptr() + 4 * num_totals
    tensors = (activations, values, scales, out)
    addresses = (*(each.data_ptr() for each in tensors), steps + 4 * rows, steps, room.data_ptr())
    fields = array("q", (*addresses, rows, rows_of_tiles, width, outputs, of_block))
    INTEGER_PRODUCT(fields.buffer_info()[0])
    return out
