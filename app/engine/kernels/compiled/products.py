"""Products of a matrix and a few rows of inputs, for which the matrix is read once."""

from typing import Any

import numpy as np

from app.engine.kernels.compiled.arithmetic import as_float, as_number_of, itemsize
from app.engine.kernels.compiled.numbers import has_pairs
from app.engine.kernels.compiled.openmp import Floats, by_type, compiled, inlined
from app.engine.kernels.compiled.tile import TILE, columns_of, write_products, write_row

_COMPUTE_BOUND_ROWS = 16  # rows, whose products take longer than to read the weights from memory
_BLOCK_BYTES = 2**15  # of weights, which stay in a cache of the core for many rows


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
