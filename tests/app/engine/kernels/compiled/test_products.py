"""Compiled products of odd sizes, against float64."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numba import carray

from app.engine.kernels.compiled.arithmetic import bytes_at, floats_at, halves_at, own_halves
from app.engine.kernels.compiled.numbers import has_pairs
from app.engine.kernels.compiled.openmp import (
    ParallelFunction,
    barrier,
    compiled,
    pointer_to,
    share,
)
from app.engine.kernels.compiled.product import products
from tests.support.compiled import torch_threads

_FIELDS = np.dtype([
    (name, np.int64) for name in ("weights", "inputs", "out", "room", "rows", "width", "outputs")
])  # fmt: skip
_to_fields = pointer_to(numba.from_dtype(_FIELDS))


def of_float32(address: int) -> None:
    fields = carray(_to_fields(address), 1)[0]
    _run(fields, floats_at(fields.weights, fields.outputs, fields.width))


def of_bfloat16(address: int) -> None:
    fields = carray(_to_fields(address), 1)[0]
    _run(fields, halves_at(fields.weights, fields.outputs, fields.width))


def of_int8(address: int) -> None:
    fields = carray(_to_fields(address), 1)[0]
    _run(fields, bytes_at(fields.weights, fields.outputs, fields.width))


@compiled
def _run(fields: Any, weights: Any) -> None:
    inputs = floats_at(fields.inputs, fields.rows, fields.width)
    out = floats_at(fields.out, fields.rows, fields.outputs)
    room = own_halves(fields.room, fields.rows, fields.width)
    first, last = share(fields.outputs)
    products(weights, inputs, room, first, last, out)
    barrier()


FUNCTIONS: dict[torch.dtype, Callable[[int], None]] = {
    torch.float32: of_float32,
    torch.bfloat16: of_bfloat16,
    torch.int8: of_int8,
}


@pytest.mark.parametrize("dtype", FUNCTIONS)
def test_products_of_any_size_are_those_of_float64(dtype: torch.dtype) -> None:
    function = ParallelFunction(FUNCTIONS[dtype])
    function.load()

    @settings(max_examples=40)
    @given(
        rows=st.integers(1, 23),
        outputs=st.integers(1, 90),
        width=st.integers(1, 200),
        threads=st.integers(1, 3),
    )
    @example(rows=33, outputs=47, width=2100, threads=2)
    @example(rows=7, outputs=16, width=64, threads=1)
    def agrees(rows: int, outputs: int, width: int, threads: int) -> None:
        torch.manual_seed(rows * outputs + width)
        weights = (40 * torch.randn(outputs, width)).clamp(-127, 127).to(dtype)
        inputs = torch.randn(rows, width)
        out = product(function, weights, inputs, threads)
        if dtype == torch.bfloat16 and has_pairs():
            inputs = inputs.bfloat16()
        exact = inputs.double() @ weights.double().T
        bound = inputs.double().abs() @ weights.double().abs().T
        assert ((out.double() - exact).abs() <= 1e-6 * bound).all()

    agrees()


@pytest.mark.parametrize("dtype", FUNCTIONS)
def test_the_products_of_a_row_do_not_depend_on_other_rows(dtype: torch.dtype) -> None:
    """Bit for bit: a reproducible output depends on no other request."""
    function = ParallelFunction(FUNCTIONS[dtype])
    function.load()

    @settings(max_examples=40)
    @given(
        first=st.integers(0, 22),
        rows=st.integers(1, 23),
        outputs=st.integers(1, 90),
        width=st.integers(1, 300),
        threads=st.integers(1, 3),
    )
    def agrees(first: int, rows: int, outputs: int, width: int, threads: int) -> None:
        torch.manual_seed(rows * outputs + width)
        weights = (40 * torch.randn(outputs, width)).clamp(-127, 127).to(dtype)
        inputs = torch.randn(first + rows, width)
        whole = product(function, weights, inputs, threads)
        part = product(function, weights, inputs[first:].contiguous(), threads)
        assert torch.equal(part, whole[first:])

    agrees()


def product(
    function: ParallelFunction, weights: torch.Tensor, inputs: torch.Tensor, threads: int
) -> torch.Tensor:
    (rows, width), outputs = inputs.shape, len(weights)
    out = torch.full((rows, outputs), torch.nan)
    room = torch.empty(threads * rows * width, dtype=torch.bfloat16)
    fields = np.zeros(1, _FIELDS)
    addresses = [each.data_ptr() for each in (weights, inputs, out, room)]
    fields[0] = (*addresses, rows, width, outputs)
    with torch_threads(threads):
        function(fields.ctypes.data)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("features", ["", "+avx,+avx2,+fma", "+avx,+avx2,+fma,+avx512f"])
@pytest.mark.skipif(not has_pairs(), reason="this processor has none of these features to miss")
def test_processors_with_fewer_features_compute_the_same(features: str) -> None:
    environment = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": features}
    tests = [sys.executable, "-m", "pytest", "-q", __file__, "-k", "of_any_size"]
    done = subprocess.run(tests, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
