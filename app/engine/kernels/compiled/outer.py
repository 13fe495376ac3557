"""Products of small matrices as sums of outer products, which need no sums within a vector.

They are written in vectors, those of LLVM, which makes no good ones of such loops. The numbers of a
row of the left matrix, and of a column of the right one, are in words of 32 bits: a float32, or a
pair of bfloat16 where the processor multiplies these.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from app.engine.kernels.compiled.numbers import (
    Numbers,
    are_paired,
    num_lanes,
    pairs,
    repeated,
    widened_numbers,
)
from app.engine.kernels.compiled.openmp import by_type, compiled
from app.engine.kernels.compiled.operands import num_columns, rows_at

_INT32, _INT64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_Add = Callable[[Any, int, int, int, int, int, int, int], None]


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
        for row in rows_at(builder, out, out_step, num_rows)
        for place in _vectors(builder, row, floats, num_vectors)
    ]
    with builder.goto_entry_block():
        sums = [builder.alloca(floats) for _ in outs]
    for total, place in zip(sums, outs, strict=True):
        builder.store(builder.load(place, align=4), total)
    lefts = rows_at(builder, left, left_step, num_rows)
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
