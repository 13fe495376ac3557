"""The weights that softmax makes of a tile of scores, by vectors."""

from collections.abc import Callable, Sequence
from typing import Any, cast

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from app.engine.kernels.compiled.arithmetic import LOG2_E, SERIES
from app.engine.kernels.compiled.numbers import (
    are_paired,
    chosen,
    num_lanes,
    repeated,
    rounded,
)

_INT32, _INT64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FUSED = ("contract",)
_LOWEST = -126.0  # power of two of a number that is not denormal
_Weigh = Callable[[Any, int, int, int, int, Any, Any, int], Any]


def _weigh(
    _typing: Any, like: Any, _scores: Any, num_scores: Any, _low: Any, _high: Any, _top: Any,
    _scaling: Any, _sums: Any,
) -> Any:  # fmt: skip
    """Make weights of the float32 scores from ``low`` to ``high`` at an address, relative to the
    highest one of these and of ``top``, and zeros of the others. There are as many scores as the
    literal ``num_scores`` says. The weights are in the words of operands for numbers ``like``
    these. Returns the highest one. A vector of partial sums of the weights gets to ``sums``."""
    number = num_scores.literal_value
    int64, float32 = types.int64, types.float32

    def make(_context: Any, builder: ir.IRBuilder, _signature: Any, values: Sequence[Any]) -> Any:
        return _make_weights(builder, like, number, [values[1], *values[3:]])

    return float32(like, int64, num_scores, int64, int64, float32, float32, int64), make


weigh = cast("_Weigh", intrinsic(prefer_literal=True)(_weigh))


def _make_weights(
    builder: ir.IRBuilder, like: types.Array, number: int, values: Sequence[Any]
) -> Any:
    scores, low, high, top, scaling, sums = values
    lanes = num_lanes()
    floats, ints = ir.VectorType(_FLOAT, lanes), ir.VectorType(_INT32, lanes)
    zeros, none = (ir.Constant(floats, [each] * lanes) for each in (0.0, float("-inf")))
    low, high = (repeated(builder, builder.trunc(each, _INT32), ints) for each in (low, high))
    seen, rows = [], []
    for start in range(0, number, lanes):
        at = ir.Constant(ints, [*range(start, start + lanes)])
        is_near = builder.icmp_signed("<", at, high)
        seen.append(builder.and_(builder.icmp_signed(">=", at, low), is_near))
        row = builder.load(_place(builder, scores, 4 * start, floats), align=4)
        rows.append(builder.select(seen[-1], row, none))
    highest = _highest(builder, rows, top)
    scaling = builder.fmul(scaling, _FLOAT(float(LOG2_E)))
    below = builder.fneg(builder.fmul(highest, scaling))
    factor, offset = (repeated(builder, each, floats) for each in (scaling, below))
    terms = SERIES[:5] if are_paired(like) else SERIES  # bfloat16 has 8 bits
    total = zeros
    for index, (row, is_seen) in enumerate(zip(rows, seen, strict=True)):
        power = builder.fadd(builder.fmul(row, factor, flags=_FUSED), offset, flags=_FUSED)
        weight = builder.select(is_seen, _power_of_two(builder, power, terms), zeros)
        total = builder.fadd(total, weight)
        operand = rounded(builder, weight) if are_paired(like) else weight
        size = lanes * (2 if are_paired(like) else 4)
        place = _place(builder, scores, index * size, operand.type)
        builder.store(operand, place, align=2)
    builder.store(total, _place(builder, sums, 0, floats), align=4)
    return highest


def _place(builder: ir.IRBuilder, start: Any, offset: int, vector: ir.VectorType) -> Any:
    return builder.inttoptr(builder.add(start, _INT64(offset)), vector.as_pointer())


def _highest(builder: ir.IRBuilder, rows: Sequence[Any], top: Any) -> Any:
    highest = rows[0]
    for row in rows[1:]:
        highest = _larger(builder, highest, row)
    while highest.type.count > 1:
        half = highest.type.count // 2
        parts = (
            chosen(builder, highest, highest, range(start, start + half)) for start in (0, half)
        )
        highest = _larger(builder, *parts)
    return _larger(builder, builder.extract_element(highest, _INT32(0)), top)


def _larger(builder: ir.IRBuilder, first: Any, second: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", first, second), first, second)


def _power_of_two(builder: ir.IRBuilder, number: Any, terms: Sequence[Any]) -> Any:
    """Two to the power of numbers that are not above zero, by these terms of its series."""
    floats = number.type
    ints = ir.VectorType(_INT32, floats.count)

    def same(value: Any) -> Any:
        return ir.Constant(floats, [float(value)] * floats.count)

    power = builder.select(builder.fcmp_ordered("<", number, same(_LOWEST)), same(_LOWEST), number)
    name = f"llvm.rint.v{floats.count}f32"
    rint = cgutils.get_or_insert_function(builder.module, ir.FunctionType(floats, [floats]), name)
    whole = builder.call(rint, [power])
    rest = builder.fsub(power, whole)
    total = same(terms[-1])
    for term in reversed(terms[:-1]):
        product = builder.fmul(total, rest, flags=_FUSED)
        total = builder.fadd(product, same(term), flags=_FUSED)
    bias, bits = (ir.Constant(ints, [each] * floats.count) for each in (127, 23))
    exponent = builder.shl(builder.add(builder.fptosi(whole, ints), bias), bits)
    return builder.fmul(total, builder.bitcast(exponent, floats))
