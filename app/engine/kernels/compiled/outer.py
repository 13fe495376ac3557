"""Products of small matrices as sums of outer products, which need no sums within a vector.

They are written in vectors, those of LLVM, which makes no good ones of such loops. The numbers of a
row of the left matrix, and of a column of the right one, are in words of 32 bits: a float32, or a
pair of bfloat16 where the processor multiplies these. A pair has two numbers that are neighbours
along the sum of a product.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
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
from app.engine.kernels.compiled.numbers import (
    Numbers,
    are_paired,
    chosen,
    num_lanes,
    pairs,
    repeated,
    widened_numbers,
)
from app.engine.kernels.compiled.openmp import by_type, compiled

_INT16, _INT32, _INT64, _FLOAT = (*map(ir.IntType, (16, 32, 64)), ir.FloatType())
_Transpose = Callable[[Any, int, int, int, int], None]
_Join = Callable[[Any, int, int, int, int, int], None]
_Add = Callable[[Any, int, int, int, int, int, int, int], None]


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
        rows = [_read(builder, row, words) for row in _rows_at(builder, source, source_step, lanes)]
        columns = _transposed(builder, rows)
        if like.dtype == types.uint16 and not are_paired(like):
            columns = [part for each in columns for part in _parted(builder, each)]
        targets = _rows_at(builder, target, target_step, len(columns))
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
        sources = _rows_at(builder, source, step, lanes)
        targets = _rows_at(builder, target, target_step, lanes // number)
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


def _rows_at(builder: ir.IRBuilder, start: Any, step: Any, number: int) -> list[Any]:
    """The addresses of rows, from this one on."""
    return [builder.add(start, builder.mul(step, _INT64(row))) for row in range(number)]


def _read(builder: ir.IRBuilder, place: Any, vector: ir.VectorType) -> Any:
    return builder.load(builder.inttoptr(place, vector.as_pointer()), align=2)


def _write(builder: ir.IRBuilder, words: Any, place: Any) -> None:
    builder.store(words, builder.inttoptr(place, words.type.as_pointer()), align=4)


@by_type
def many_columns() -> Callable[[], int]:
    """The columns of results that are computed at a time, as many as registers have room for."""
    columns = _num_vectors() * num_lanes()
    return lambda: columns


def _num_vectors() -> int:
    """The vectors of results beside each other: processors with longer ones have more registers."""
    return num_lanes() // 4


@compiled
def add_product(
    like: Any, left: int, left_step: int, right: int, right_step: int, out: int, out_step: int,
    rows: int, depth: int, columns: int,
) -> None:  # fmt: skip
    """Add ``left [rows, depth] @ right [depth, columns]`` to float32 ``out``, at addresses with the
    bytes from a row to the next. The words of the operands are those for numbers ``like`` these,
    and ``columns`` are whole vectors.

    The sums of a row have one order, whatever the number of rows.
    """
    whole = columns - columns % many_columns()
    for column in range(0, whole, many_columns()):
        place, row = right + 4 * column, 0
        while row < rows:
            start, end = left + row * left_step, out + row * out_step + 4 * column
            if rows - row >= 4:
                _add_four(like, start, left_step, place, right_step, end, out_step, depth)
            elif rows - row == 3:
                _add_three(like, start, left_step, place, right_step, end, out_step, depth)
            elif rows - row == 2:
                _add_two(like, start, left_step, place, right_step, end, out_step, depth)
            else:
                _add_one(like, start, left_step, place, right_step, end, out_step, depth)
            row += 4
    for column in range(whole, columns, num_columns()):
        for row in range(rows):
            start, end = left + row * left_step, out + row * out_step + 4 * column
            _add_vector(
                like, start, left_step, right + 4 * column, right_step, end, out_step, depth
            )


def _adding(num_rows: int, num_vectors: int | None = None) -> _Add:
    """An intrinsic for this number of rows, and of vectors beside each other."""

    def add(
        _typing: Any, like: Any, _left: Any, _left_step: Any, _right: Any, _right_step: Any,
        _out: Any, _out_step: Any, _depth: Any,
    ) -> Any:  # fmt: skip
        shape = num_rows, num_vectors or _num_vectors()
        return types.void(like, *[types.int64] * 7), partial(_make_add, shape)

    return cast("_Add", intrinsic(add))


def _make_add(
    shape: tuple[int, int], context: Any, builder: ir.IRBuilder, signature: Any,
    values: Sequence[Any],
) -> Any:  # fmt: skip
    _, left, left_step, right, right_step, out, out_step, depth = values
    num_rows, num_vectors = shape
    numbers = _numbers_of(signature.args[0])
    words, floats = (ir.VectorType(each, num_lanes()) for each in (_INT32, _FLOAT))
    outs = [
        place
        for row in _rows_at(builder, out, out_step, num_rows)
        for place in _vectors(builder, row, floats, num_vectors)
    ]
    with builder.goto_entry_block():
        sums = [builder.alloca(floats) for _ in outs]
    for total, place in zip(sums, outs, strict=True):
        builder.store(builder.load(place, align=4), total)
    lefts = _rows_at(builder, left, left_step, num_rows)
    with cgutils.for_range(builder, depth) as loop:
        at = builder.add(right, builder.mul(loop.index, right_step))
        places = _vectors(builder, at, words, num_vectors)
        rights = [
            numbers.convert_weights(builder, builder.load(place, align=4)) for place in places
        ]
        offset = builder.mul(loop.index, _INT64(4))
        for row, start in enumerate(lefts):
            place = builder.inttoptr(builder.add(start, offset), _INT32.as_pointer())
            word = repeated(builder, builder.load(place, align=4), words)
            factor = numbers.convert_inputs(builder, word)
            for total, each in zip(sums[num_vectors * row :], rights, strict=False):
                builder.store(numbers.add(builder, builder.load(total), factor, each), total)
    for total, place in zip(sums, outs, strict=True):
        builder.store(builder.load(total), place, align=4)
    return context.get_dummy_value()


_add_one, _add_two, _add_three, _add_four = map(_adding, (1, 2, 3, 4))
_add_vector = _adding(1, 1)


def _numbers_of(like: types.Array) -> Numbers:
    """How words of numbers like those of an array are multiplied."""
    if are_paired(like):
        return pairs()
    numbers = widened_numbers(types.float32)

    def as_floats(builder: ir.IRBuilder, vector: Any) -> Any:
        return builder.bitcast(vector, numbers.weights)

    return replace(numbers, convert_weights=as_floats, convert_inputs=as_floats)


def _vectors(builder: ir.IRBuilder, start: Any, vector: ir.VectorType, number: int) -> list[Any]:
    """Pointers to vectors beside each other."""
    size = 4 * vector.count
    starts = [builder.add(start, _INT64(size * at)) for at in range(number)]
    return [builder.inttoptr(each, vector.as_pointer()) for each in starts]
