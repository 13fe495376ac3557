"""Compiled arithmetic, against that of torch."""

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from app.engine.kernels.compiled.arithmetic import as_float, as_number_of, exp
from app.engine.kernels.compiled.openmp import compiled

FLOATS = st.floats(width=32, allow_nan=False)


@compiled
def exponentials(numbers: Any, out: Any) -> None:
    for at in range(len(numbers)):
        out[at] = exp(numbers[at])


@compiled
def converted(numbers: Any, out: Any) -> None:
    for at in range(len(numbers)):
        out[at] = as_number_of(out, as_float(numbers[at]))


def test_exponentials_are_right_to_a_millionth_and_zero_or_huge_beyond() -> None:
    numbers = np.linspace(-86, 86, 4001, dtype=np.float32)
    out = np.empty_like(numbers)
    exponentials(numbers, out)
    exact = np.exp(numbers.astype(np.float64))
    assert np.abs(out / exact - 1).max() < 5e-6
    assert np.abs(out / exact - 1)[np.abs(numbers) < 10].max() < 1e-6
    ends = np.array([-np.inf, -1e30, 1e30, np.inf], dtype=np.float32)
    exponentials(ends, out)
    assert (out[:2] < 2e-38).all()
    assert (out[2:4] > 8e37).all()
    exponentials(np.full(20, np.nan, dtype=np.float32), out)
    assert np.isnan(out[:20]).all(), "a request with such a number would not fail"


@given(st.lists(FLOATS, min_size=1, max_size=40))
def test_numbers_are_rounded_to_bfloat16_as_torch_rounds_them(numbers: list[float]) -> None:
    floats = torch.tensor(numbers, dtype=torch.float32)
    halves = np.empty(len(numbers), dtype=np.uint16)
    converted(floats.numpy(), halves)
    expected = floats.bfloat16()
    torch.testing.assert_close(bits(halves), expected.view(torch.int16), rtol=0, atol=0)
    back = np.empty(len(numbers), dtype=np.float32)
    converted(halves, back)
    torch.testing.assert_close(torch.from_numpy(back), expected.float(), rtol=0, atol=0)


def bits(halves: NDArray[np.uint16]) -> torch.Tensor:
    return torch.from_numpy(halves.view(np.int16))
