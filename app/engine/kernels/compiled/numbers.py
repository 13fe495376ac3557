"""How vectors of the numbers of weights and inputs are read, multiplied and summed.

The vectors are those of LLVM, which makes code of them for any processor. Only pairs of bfloat16
need a processor that multiplies and sums them by one instruction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features

_INT8, _INT16, _INT32 = (ir.IntType(bits) for bits in (8, 16, 32))
_FUSED = ("contract",)
_Convert = Callable[[ir.IRBuilder, Any], Any]


class _Bfloat16(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """The type, which llvmlite does not have."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bfloat16)

    def __hash__(self) -> int:
        return hash(_Bfloat16)


@dataclass(frozen=True)
class Numbers:
    """The vectors of a product, and what is done to them."""

    weights: ir.VectorType  # in memory, and so the inputs
    inputs: ir.VectorType
    sums: ir.VectorType
    convert_weights: _Convert
    convert_inputs: _Convert
    add: Callable[[ir.IRBuilder, Any, Any, Any], Any]  # a product of vectors to their sums

    @property
    def columns(self) -> int:
        """The columns of a matrix that a vector has."""
        return int(self.weights.count)


def integers(lanes: int) -> Numbers:
    """Int8 weights and int16 inputs, with sums of int32.

    Many processors multiply two vectors of int16 and sum neighbours by one instruction.
    """
    sums, wide = (ir.VectorType(_INT32, size) for size in (lanes, 2 * lanes))

    def widened(builder: ir.IRBuilder, vector: Any) -> Any:
        return builder.sext(vector, wide)

    def add(builder: ir.IRBuilder, total: Any, left: Any, right: Any) -> Any:
        product = builder.mul(left, right)
        return builder.add(total, sum_of_pairs(builder, product, product, lanes))

    weights, inputs = (ir.VectorType(each, 2 * lanes) for each in (_INT8, _INT16))
    return Numbers(weights, inputs, sums, widened, widened, add)


def numbers_of(weights: types.Array, inputs: types.Array) -> Numbers:
    """Those of two arrays, of which uint16 are the bits of bfloat16, with sums of float32."""
    if weights.dtype == inputs.dtype == types.uint16:
        return pairs()
    return widened_numbers(weights.dtype)


def num_lanes() -> int:
    """The numbers of 32 bits in a vector of this processor."""
    return 16 if _has("avx512f") else 8


def has_pairs() -> bool:
    """Whether this processor multiplies and sums pairs of bfloat16."""
    return _has("avx512bf16")


def sum_of_pairs(builder: ir.IRBuilder, first: Any, second: Any, size: int | None = None) -> Any:
    """Sums of neighbours in the first vector and then the second, as many as the size."""
    size = first.type.count if size is None else size
    evens, odds = (chosen(builder, first, second, range(start, 2 * size, 2)) for start in (0, 1))
    if first.type.element == ir.FloatType():
        return builder.fadd(evens, odds)
    return builder.add(evens, odds)


def chosen(builder: ir.IRBuilder, first: Any, second: Any, places: Sequence[int]) -> Any:
    """A vector of the numbers at these places of the first vector and then the second."""
    mask = ir.Constant(ir.VectorType(_INT32, len(places)), [*places])
    return builder.shuffle_vector(first, second, mask)


def are_paired(like: types.Array) -> bool:
    """Whether products of numbers like those of an array are of pairs of bfloat16."""
    return like.dtype == types.uint16 and has_pairs()


def rounded(builder: ir.IRBuilder, vector: Any) -> Any:
    """The bits of float32 numbers as bfloat16, on a processor with pairs."""
    halves = builder.fptrunc(vector, ir.VectorType(_Bfloat16(), vector.type.count))
    return builder.bitcast(halves, ir.VectorType(_INT16, vector.type.count))


def repeated(builder: ir.IRBuilder, number: Any, vector: ir.VectorType) -> Any:
    """A vector of one number."""
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), number, _INT32(0))
    return chosen(builder, first, first, [0] * vector.count)


def _has(feature: str) -> bool:
    """Whether numba compiles for a processor with this feature."""
    features: str | None = numba.config.CPU_FEATURES
    if features is None:
        features = get_host_cpu_features()
    return f"+{feature}" in features.split(",")


def widened_numbers(weight: types.Type) -> Numbers:
    """Weights of any kind and float32 inputs."""
    lanes = num_lanes()
    floats, ints = (ir.VectorType(each, lanes) for each in (ir.FloatType(), _INT32))

    def unchanged(_builder: ir.IRBuilder, vector: Any) -> Any:
        return vector

    def from_half(builder: ir.IRBuilder, vector: Any) -> Any:
        bits = builder.shl(builder.zext(vector, ints), ir.Constant(ints, [16] * lanes))
        return builder.bitcast(bits, floats)

    def from_byte(builder: ir.IRBuilder, vector: Any) -> Any:
        return builder.sitofp(builder.sext(vector, ints), floats)

    def add(builder: ir.IRBuilder, total: Any, left: Any, right: Any) -> Any:
        return builder.fadd(total, builder.fmul(left, right, flags=_FUSED), flags=_FUSED)

    read, convert = {
        types.float32: (ir.FloatType(), unchanged),
        types.uint16: (_INT16, from_half),
        types.int8: (_INT8, from_byte),
    }[weight]
    return Numbers(ir.VectorType(read, lanes), floats, floats, convert, unchanged, add)


def pairs() -> Numbers:
    """Weights and inputs of bfloat16."""
    lanes = num_lanes()
    bits, halves = (ir.VectorType(each, 2 * lanes) for each in (_INT16, _Bfloat16()))
    sums = ir.VectorType(ir.FloatType(), lanes)

    def as_halves(builder: ir.IRBuilder, vector: Any) -> Any:
        return builder.bitcast(vector, halves)

    def add(builder: ir.IRBuilder, total: Any, left: Any, right: Any) -> Any:
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
        kind = ir.FunctionType(sums, [sums, halves, halves])
        function = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(function, [total, left, right])

    return Numbers(bits, bits, sums, as_halves, as_halves, add)
