"""Numbers as operands of products: in words of 32 bits, a float32 or a pair of bfloat16.

A pair has two numbers that are neighbours along the sum of a product.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from app.engine.kernels.compiled.arithmetic import (
    array_like,
    as_float,
    as_number_of,
    floats_at,
    halves_at,
    itemsize,
)
from app.engine.kernels.compiled.numbers import are_paired, chosen, num_lanes, widened_numbers
from app.engine.kernels.compiled.openmp import by_type, compiled

_INT16, _INT32, _INT64, _FLOAT = (*map(ir.IntType, (16, 32, 64)), ir.FloatType())
_Transpose = Callable[[Any, int, int, int, int], None]
_Join = Callable[[Any, int, int, int, int, int], None]


@by_type
def num_columns() -> Callable[[], int]:
    """The columns of a vector."""
    columns = num_lanes()
    return lambda: columns


@by_type
def of_word(like: Any) -> Callable[[Any], int]:
    """The numbers of a word."""
    number = 2 if are_paired(like) else 1
    return lambda _like: number


@by_type
def operands_at(like: Any, _address: Any, _rows: Any, _width: Any) -> Any:
    """The numbers of words at an address."""
    at = halves_at if are_paired(like) else floats_at
    return lambda _like, address, rows, width: at(address, rows, width)


@compiled
def write_columns(like: Any, source: int, width: int, target: int, target_columns: int) -> None:
    """Write as many rows of numbers as a vector has as columns of words, of which ``target`` has
    so many."""
    rows, size, number = num_columns(), itemsize(like), of_word(like)
    done, block = 0, num_columns() * 4 // size
    while done + block <= width:
        place = target + 4 * (done // number) * target_columns
        _transpose(like, source + done * size, width * size, place, 4 * target_columns)
        done += block
    numbers = array_like(like, source, rows, width)
    out = operands_at(like, target, width // number, target_columns * number)
    for at in range(done, width):
        for row in range(rows):
            value = as_float(numbers[row, at])
            out[at // number, row * number + at % number] = as_number_of(out, value)


@compiled
def write_rows(like: Any, source: int, width: int, target: int, target_columns: int) -> None:
    """Write as many rows of numbers as a vector has as rows of words, which end with zeros."""
    rows, number = num_columns(), of_word(like)
    done = width - width % num_columns()
    _join(like, source, width, done, target, target_columns)
    numbers = array_like(like, source, rows, width)
    out = operands_at(like, target, rows // number, target_columns * number)
    for row in range(rows):
        for at in range(done, target_columns):
            value = as_float(numbers[row, at]) if at < width else 0.0
            out[row // number, at * number + row % number] = as_number_of(out, value)


def _transpose_words(
    _typing: Any, like: Any, _source: Any, _source_step: Any, _target: Any, _target_step: Any
) -> Any:
    """Write as many words of 32 bits of as many rows as a vector has as columns of operands."""

    def make(context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[Any]) -> Any:
        _, source, source_step, target, target_step = values
        lanes = num_lanes()
        words = ir.VectorType(_INT32, lanes)
        rows = [_read(builder, row, words) for row in rows_at(builder, source, source_step, lanes)]
        columns = _transposed(builder, rows)
        if like.dtype == types.uint16 and not are_paired(like):
            columns = [part for each in columns for part in _parted(builder, each)]
        targets = rows_at(builder, target, target_step, len(columns))
        for each, place in zip(columns, targets, strict=True):
            _write(builder, each, place)
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 4), make


_transpose = cast("_Transpose", intrinsic(_transpose_words))


def _join_rows(
    _typing: Any, like: Any, _source: Any, _width: Any, _columns: Any, _target: Any,
    _target_columns: Any,
) -> Any:  # fmt: skip
    """Write some columns of as many rows as a vector has as rows of words."""

    def make(context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[Any]) -> Any:
        _, source, width, columns, target, target_columns = values
        number = 2 if are_paired(like) else 1
        size, lanes = like.dtype.bitwidth // 8, num_lanes()
        step, target_step = builder.mul(width, _INT64(size)), builder.mul(target_columns, _INT64(4))
        sources = rows_at(builder, source, step, lanes)
        targets = rows_at(builder, target, target_step, lanes // number)
        with cgutils.for_range_slice(builder, _INT64(0), columns, _INT64(lanes)) as (at, _):
            from_offset, to_offset = (builder.mul(at, _INT64(each)) for each in (size, 4))
            for row, place in enumerate(targets):
                both = sources[number * row : number * (row + 1)]
                places = [builder.add(each, from_offset) for each in both]
                _write(builder, _words(builder, like, places), builder.add(place, to_offset))
        return context.get_dummy_value()

    return types.void(like, *[types.int64] * 5), make


_join = cast("_Join", intrinsic(_join_rows))


def _words(builder: ir.IRBuilder, like: types.Array, places: Sequence[Any]) -> Any:
    """A vector of words of the numbers at one place, or at two beside each other in a sum."""
    lanes = num_lanes()
    words = ir.VectorType(_INT32, lanes)
    if len(places) == 1:
        numbers = widened_numbers(like.dtype)
        wide = numbers.convert_weights(builder, _read(builder, places[0], numbers.weights))
        return builder.bitcast(wide, words)
    low, high = (
        builder.zext(_read(builder, place, ir.VectorType(_INT16, lanes)), words) for place in places
    )
    return builder.or_(low, builder.shl(high, ir.Constant(words, [16] * lanes)))


def _parted(builder: ir.IRBuilder, pair: Any) -> tuple[Any, Any]:
    """The two numbers of pairs of bfloat16, as float32."""
    lanes = pair.type.count
    low = builder.shl(pair, ir.Constant(pair.type, [16] * lanes))
    return low, builder.and_(pair, ir.Constant(pair.type, [0xFFFF0000] * lanes))


def _transposed(builder: ir.IRBuilder, rows: Sequence[Any]) -> list[Any]:
    """Exchange blocks off the diagonal: of one number, then of two by two, and so on."""
    rows, lanes = [*rows], len(rows)
    size = 1
    while size < lanes:
        first = [at if not at & size else lanes + at - size for at in range(lanes)]
        second = [at + size if not at & size else lanes + at for at in range(lanes)]
        for row in range(lanes):
            if not row & size:
                pair = rows[row], rows[row + size]
                rows[row] = chosen(builder, *pair, first)
                rows[row + size] = chosen(builder, *pair, second)
        size *= 2
    return rows


def rows_at(builder: ir.IRBuilder, start: Any, step: Any, number: int) -> list[Any]:
    """The addresses of rows, from this one on."""
    return [builder.add(start, builder.mul(step, _INT64(row))) for row in range(number)]


def _read(builder: ir.IRBuilder, place: Any, vector: ir.VectorType) -> Any:
    return builder.load(builder.inttoptr(place, vector.as_pointer()), align=2)


def _write(builder: ir.IRBuilder, words: Any, place: Any) -> None:
    builder.store(words, builder.inttoptr(place, words.type.as_pointer()), align=4)
