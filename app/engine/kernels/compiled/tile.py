"""Products of a few rows of weights and a few rows of inputs, by vectors.

LLVM makes no good vectors of a loop over several rows of either side. So the loop is written here
in vectors, which are those of LLVM and of no particular processor.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from app.engine.kernels.compiled.numbers import Numbers, chosen, integers, numbers_of, sum_of_pairs
from app.engine.kernels.compiled.openmp import by_type

TILE = 4  # rows of each side
_INTEGERS = integers(TILE * TILE)
COLUMNS = _INTEGERS.columns

_INT32, _INT64, _ADDRESS = ir.IntType(32), ir.IntType(64), ir.IntType(8).as_pointer()
_FLOATS = ir.VectorType(ir.FloatType(), TILE)
_KEPT = 3  # of prefetched weights, in caches of all levels


def _add_products(
    _typing: Any, _weights: Any, _inputs: Any, _width: Any, _totals: Any, _stride: Any
) -> Any:
    """Add the products of rows of int8 weights and rows of int16 inputs to float32 totals.

    Rows are given by their addresses, and ``width`` is a multiple of ``COLUMNS``. ``totals`` is the
    address of numbers ``[inputs, weights]``, with ``stride`` numbers from a row to the next.
    """
    rows = types.UniTuple(types.int64, TILE)
    return types.void(rows, rows, types.int64, types.int64, types.int64), _make_add


_Rows = tuple[int, int, int, int]
add_products = cast("Callable[[_Rows, _Rows, int, int, int], None]", intrinsic(_add_products))


def _make_add(context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[Any]) -> Any:
    weights, inputs = (
        [builder.extract_value(rows, at) for at in range(TILE)] for rows in values[:2]
    )
    width, totals, stride = values[2:]
    products = _products(builder, _INTEGERS, weights, inputs, width)
    for at in range(TILE):
        part = chosen(builder, products, products, range(TILE * at, TILE * (at + 1)))
        row = builder.add(totals, builder.mul(stride, _INT64(4 * at)))
        place = builder.inttoptr(row, _FLOATS.as_pointer())
        total = builder.fadd(builder.load(place, align=4), builder.sitofp(part, _FLOATS))
        builder.store(total, place, align=4)
    return context.get_dummy_value()


@by_type
def columns_of(weights: Any, inputs: Any) -> Callable[[Any, Any], int]:
    """The columns of a vector in the products of such arrays."""
    columns = numbers_of(weights, inputs).columns
    return lambda _weights, _inputs: columns


_Write = Callable[[Any, Any, int, int, int, Any], None]


def _writing(num_inputs: int) -> _Write:
    """An intrinsic that writes products of ``TILE`` rows of weights from ``at`` on and so many rows
    of inputs from ``row`` on to ``out [inputs, weights]``, by ``width`` columns, which are whole
    vectors. Sums have one order for any number."""

    def write(
        _typing: Any, weights: Any, inputs: Any, _at: Any, _row: Any, _width: Any, out: Any
    ) -> Any:
        numbers = numbers_of(weights, inputs)

        def make(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            arrays = [
                context.make_array(signature.args[at])(context, builder, values[at])
                for at in (0, 1, 5)
            ]
            _write(builder, numbers, arrays, values[2:5], num_inputs)
            return context.get_dummy_value()

        return types.void(weights, inputs, *[types.int64] * 3, out), make

    return cast("_Write", intrinsic(write))


write_products, write_row = _writing(TILE), _writing(1)


def _write(
    builder: ir.IRBuilder,
    numbers: Numbers,
    arrays: Sequence[Any],
    places: Sequence[Any],
    num_inputs: int,
) -> None:
    """Products of some of the ``TILE`` outputs at a time, whose sums have room in registers."""
    weights, inputs, out = arrays
    at, row, width = places
    right, left = _rows(builder, weights, at, TILE), _rows(builder, inputs, row, num_inputs)
    targets = _rows(builder, out, row, num_inputs)
    outputs = min(TILE, numbers.sums.count // num_inputs)
    floats = ir.VectorType(ir.FloatType(), outputs)
    for first in range(0, TILE, outputs):
        some = right[first : first + outputs]
        ahead = builder.mul(_row_bytes(builder, weights), _INT64(TILE))
        products = _products(builder, numbers, some, left, width, ahead)
        for each, target in enumerate(targets):
            part = chosen(builder, products, products, range(outputs * each, outputs * (each + 1)))
            start = builder.add(target, builder.mul(builder.add(at, _INT64(first)), _INT64(4)))
            builder.store(part, builder.inttoptr(start, floats.as_pointer()), align=4)


def _rows(builder: ir.IRBuilder, array: Any, first: Any, number: int) -> list[Any]:
    """Addresses of rows of an array."""
    start, row_bytes = builder.ptrtoint(array.data, _INT64), _row_bytes(builder, array)
    places = [builder.add(first, _INT64(at)) for at in range(number)]
    return [builder.add(start, builder.mul(place, row_bytes)) for place in places]


def _row_bytes(builder: ir.IRBuilder, array: Any) -> Any:
    return builder.extract_value(array.strides, 0)


def _products(
    builder: ir.IRBuilder,
    numbers: Numbers,
    weights: Sequence[Any],
    inputs: Sequence[Any],
    width: Any,
    ahead: Any = None,
) -> Any:
    """A vector of the products of all inputs with all weights."""
    sums = _sums(builder, numbers, weights, inputs, width, ahead)
    while len(sums) > 1:
        pairs = zip(sums[::2], sums[1::2], strict=True)
        sums = [sum_of_pairs(builder, first, second) for first, second in pairs]
    (products,) = sums
    while products.type.count > len(weights) * len(inputs):
        products = sum_of_pairs(builder, products, products, products.type.count // 2)
    return products


def _sums(
    builder: ir.IRBuilder,
    numbers: Numbers,
    weights: Sequence[Any],
    inputs: Sequence[Any],
    width: Any,
    ahead: Any,
) -> list[Any]:
    """A vector for each input and weight, whose sum is their product."""
    with builder.goto_entry_block():
        places = [builder.alloca(numbers.sums) for _ in range(len(weights) * len(inputs))]
    for place in places:
        builder.store(ir.Constant(numbers.sums, None), place)
    columns = cgutils.for_range_slice(builder, _INT64(0), width, _INT64(numbers.columns))
    with columns as (column, _):
        starts = [_at_column(builder, row, column, numbers.weights) for row in weights]
        if ahead is not None:
            for start in starts:
                _prefetch(builder, builder.add(start, ahead))
        rights = [
            numbers.convert_weights(builder, _read(builder, start, numbers.weights))
            for start in starts
        ]
        for at, row in enumerate(inputs):
            start = _at_column(builder, row, column, numbers.inputs)
            left = numbers.convert_inputs(builder, _read(builder, start, numbers.inputs))
            for place, right in zip(places[len(weights) * at :], rights, strict=False):
                builder.store(numbers.add(builder, builder.load(place), left, right), place)
    return [builder.load(place) for place in places]


def _at_column(builder: ir.IRBuilder, row: Any, column: Any, vector: ir.VectorType) -> Any:
    """The address of a column of a row of numbers that this vector has."""
    num_bytes = 4 if vector.element == ir.FloatType() else vector.element.width // 8
    return builder.add(row, builder.mul(column, _INT64(num_bytes)))


def _read(builder: ir.IRBuilder, address: Any, vector: ir.VectorType) -> Any:
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=1)


def _prefetch(builder: ir.IRBuilder, address: Any) -> None:
    """Ask for what will be read next, which the memory sends while other products are computed."""
    kind = ir.FunctionType(ir.VoidType(), [_ADDRESS, _INT32, _INT32, _INT32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    is_write, is_data = _INT32(0), _INT32(1)
    place = builder.inttoptr(address, _ADDRESS)
    builder.call(function, [place, is_write, _INT32(_KEPT), is_data])
