"""Arrays at addresses, and the numbers in them: float32, int8, and bfloat16 as their bits."""

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


def array_like(like: Any, address: int, rows: int, width: int) -> Any:
    """Numbers ``[rows, width]`` at an address, of the kind that ``like`` has."""
    raise NotImplementedError(
        like, address, rows, width
    )  # only in compiled code, in the form below


@by_type(array_like)
def _array_like(like: Any, address: Any, rows: Any, width: Any) -> Any:
    at = halves_at if like.dtype == types.uint16 else floats_at

    def array(like: Any, address: Any, rows: Any, width: Any) -> Any:
        return at(address, rows, width)

    return array


def itemsize(array: Any) -> int:
    """The bytes of a number of the array."""
    raise NotImplementedError(array)  # only in compiled code, in the form below


@by_type(itemsize)
def _itemsize(array: Any) -> Any:
    num_bytes = array.dtype.bitwidth // 8

    def of(array: Any) -> Any:
        return num_bytes

    return of


def as_float(number: Any) -> Any:
    """A float32 from a number of a matrix: uint16 are the bits of a bfloat16."""
    raise NotImplementedError(number)  # only in compiled code, in the form below


@by_type(as_float)
def _as_float(number: Any) -> Any:
    def from_half(number: Any) -> Any:
        return np.uint32(np.uint32(number) << np.uint32(16)).view(np.float32)

    def from_other(number: Any) -> Any:
        return np.float32(number)

    return from_half if number == types.uint16 else from_other


def as_number_of(array: Any, number: Any) -> Any:
    """A float32 as a number of the kind that the array has; to bfloat16, to the nearest even."""
    raise NotImplementedError(array, number)  # only in compiled code, in the form below


@by_type(as_number_of)
def _as_number_of(array: Any, number: Any) -> Any:
    def as_half(array: Any, number: Any) -> Any:
        return _bfloat16(number)

    def as_float32(array: Any, number: Any) -> Any:
        return np.float32(number)

    return as_half if array.dtype == types.uint16 else as_float32


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
