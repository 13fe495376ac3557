"""Arrays at addresses, and the numbers in them: float32, int8, and bfloat16 as their bits."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, types
from numpy.typing import NDArray

from app.engine.kernels.compiled.openmp import Floats, by_type, compiled, get_thread, pointer_to

_to_floats = pointer_to(types.float32)
_to_halves = pointer_to(types.uint16)
_to_bytes = pointer_to(types.int8)
LOG2_E = np.float32(1.4426950408889634)
# The Taylor series of 2**x, which is exact to 2e-7 within half a unit around zero
SERIES = tuple(np.float32(each) for each in (
    1.0, 0.6931471805599453, 0.2402265069591007, 0.05550410866482158, 0.009618129107628477,
    0.0013333558146428443, 0.00015403530393381608,
))  # fmt: skip


@compiled
def floats_at(address: int, rows: int, width: int) -> Floats:
    """The float32 numbers ``[rows, width]`` at an address."""
    numbers: Floats = carray(_to_floats(address), (rows, width))
    return numbers


@compiled
def halves_at(address: int, rows: int, width: int) -> NDArray[np.uint16]:
    """The bits of the bfloat16 numbers ``[rows, width]`` at an address."""
    bits: NDArray[np.uint16] = carray(_to_halves(address), (rows, width))
    return bits


@compiled
def bytes_at(address: int, rows: int, width: int) -> NDArray[np.int8]:
    """The int8 numbers ``[rows, width]`` at an address."""
    numbers: NDArray[np.int8] = carray(_to_bytes(address), (rows, width))
    return numbers


@compiled
def own_floats(address: int, rows: int, width: int) -> Floats:
    """Room of this thread alone, among that of all threads."""
    return floats_at(address + 4 * get_thread() * rows * width, rows, width)


@compiled
def own_halves(address: int, rows: int, width: int) -> NDArray[np.uint16]:
    """The same for the bits of bfloat16 numbers."""
    return halves_at(address + 2 * get_thread() * rows * width, rows, width)


@by_type
def array_like(like: Any, _address: Any, _rows: Any, _width: Any) -> Any:
    """Numbers ``[rows, width]`` at an address, of the kind that ``like`` has."""
    at = halves_at if like.dtype == types.uint16 else floats_at
    return lambda _like, address, rows, width: at(address, rows, width)


@by_type
def itemsize(array: Any) -> Callable[[Any], int]:
    """The bytes of a number of the array."""
    num_bytes = array.dtype.bitwidth // 8
    return lambda _array: num_bytes


@by_type
def as_float(number: Any) -> Any:
    """A float32 from a number of a matrix: uint16 are the bits of a bfloat16."""

    def from_half(number: Any) -> Any:
        return np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)

    def from_other(number: Any) -> Any:
        return np.float32(number)

    return from_half if number == types.uint16 else from_other


@by_type
def as_number_of(array: Any, _number: Any) -> Any:
    """A float32 as a number of the kind that the array has; to bfloat16, to the nearest even."""
    convert = _bfloat16 if array.dtype == types.uint16 else np.float32
    return lambda _array, number: convert(number)


@compiled
def _bfloat16(number: Any) -> Any:
    bits = np.float32(number).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return np.uint16((bits + half) >> np.uint32(16))


@compiled
def exp(number: Any) -> Any:
    """e to the power of a float32, by operations that vectors have.

    Its relative error is 1e-6 within 10 of zero and 5e-6 elsewhere. Beyond ±87 it stays near the
    smallest and largest number of float32.
    """
    power = min(max(number * LOG2_E, np.float32(-126)), np.float32(126))
    cut = np.int32(power + np.float32(126.5))  # rounded: it cuts, above zero
    whole = np.int32(cut - np.int32(126))  # a difference has 64 bits, which vectors convert slowly
    rest = power - np.float32(whole)
    total = SERIES[6]
    total = total * rest + SERIES[5]
    total = total * rest + SERIES[4]
    total = total * rest + SERIES[3]
    total = total * rest + SERIES[2]
    total = total * rest + SERIES[1]
    total = total * rest + SERIES[0]
    exponent = np.uint32(whole + np.int32(127)) << np.uint32(23)
    return total * np.uint32(exponent).view(np.float32)
