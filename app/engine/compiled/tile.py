"""Products of a few rows of integers, by vectors of pairs.

Many processors multiply two vectors of int16 and sum neighbours by one instruction. LLVM does not
find it in a loop over several rows. So the loop is written here in vectors, which are those of
LLVM and of no particular processor.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

TILE = 4  # rows of each side
COLUMNS = 2 * TILE * TILE  # of a vector: the sums of pairs are as many as the products of rows

_INT64 = ir.IntType(64)
_BYTES, _SHORTS, _INTS = (ir.VectorType(ir.IntType(bits), COLUMNS) for bits in (8, 16, 32))
_SUMS = ir.VectorType(ir.IntType(32), COLUMNS // 2)
_FLOATS = ir.VectorType(ir.FloatType(), TILE)


def _add_products(
    _typing: Any, _weights: Any, _inputs: Any, _width: Any, _totals: Any, _stride: Any
) -> Any:
    """Add the products of rows of int8 weights and rows of int16 inputs to float32 totals.

    Rows are given by their addresses, and ``width`` is a multiple of ``COLUMNS``. ``totals`` is the
    address of numbers ``[inputs, weights]``, with ``stride`` numbers from a row to the next.
    """
    rows = types.UniTuple(types.int64, TILE)
    return types.void(rows, rows, types.int64, types.int64, types.int64), _make


_Rows = tuple[int, int, int, int]
add_products = cast("Callable[[_Rows, _Rows, int, int, int], None]", intrinsic(_add_products))


def _make(context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[Any]) -> Any:
    weights, inputs = (
        [builder.extract_value(rows, at) for at in range(TILE)] for rows in values[:2]
    )
    width, totals, stride = values[2:]
    sums = _sums(builder, weights, inputs, width)
    while len(sums) > 1:
        pairs = zip(sums[::2], sums[1::2], strict=True)
        sums = [_sum_of_pairs(builder, first, second) for first, second in pairs]
    for at in range(TILE):
        part = _chosen(builder, sums[0], sums[0], range(TILE * at, TILE * (at + 1)))
        row = builder.add(totals, builder.mul(stride, _INT64(4 * at)))
        place = builder.inttoptr(row, _FLOATS.as_pointer())
        total = builder.fadd(builder.load(place, align=4), builder.sitofp(part, _FLOATS))
        builder.store(total, place, align=4)
    return context.get_dummy_value()


def _sums(
    builder: ir.IRBuilder, weights: Sequence[Any], inputs: Sequence[Any], width: Any
) -> list[Any]:
    """A vector for each input and weight, whose sum is their product."""
    with builder.goto_entry_block():
        places = [builder.alloca(_SUMS) for _ in range(TILE * TILE)]
    for place in places:
        builder.store(ir.Constant(_SUMS, None), place)
    columns = cgutils.for_range_slice(builder, _INT64(0), width, _INT64(COLUMNS))
    with columns as (column, _):
        rights = [_wide(builder, builder.add(row, column), _BYTES) for row in weights]
        for at, row in enumerate(inputs):
            start = builder.add(row, builder.mul(column, _INT64(2)))
            left = _wide(builder, start, _SHORTS)
            for place, right in zip(places[TILE * at :], rights, strict=False):
                product = builder.mul(left, right)
                half = _sum_of_pairs(builder, product, product, COLUMNS // 2)
                builder.store(builder.add(builder.load(place), half), place)
    return [builder.load(place) for place in places]


def _wide(builder: ir.IRBuilder, address: Any, numbers: ir.VectorType) -> Any:
    """The numbers at an address as int32."""
    place = builder.inttoptr(address, numbers.as_pointer())
    return builder.sext(builder.load(place, align=1), _INTS)


def _sum_of_pairs(builder: ir.IRBuilder, first: Any, second: Any, size: int | None = None) -> Any:
    """Sums of neighbours in the first vector and then the second, as many as the size."""
    size = first.type.count if size is None else size
    evens, odds = (range(start, 2 * size, 2) for start in (0, 1))
    return builder.add(
        _chosen(builder, first, second, evens), _chosen(builder, first, second, odds)
    )


def _chosen(builder: ir.IRBuilder, first: Any, second: Any, places: Sequence[int]) -> Any:
    """A vector of the numbers at these places of the first vector and then the second."""
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(places)), [*places])
    return builder.shuffle_vector(first, second, mask)
