"""Fixtures of the simulated device; registered by conftest."""

from collections.abc import Iterator

import pytest

from tests.support.simcuda.device import SimulatedCuda, simulated_cuda


@pytest.fixture
def cuda() -> Iterator[SimulatedCuda]:
    """During the test, torch has two simulated CUDA devices of 80 GiB."""
    with simulated_cuda() as device:
        yield device


@pytest.fixture
def dry(cuda: SimulatedCuda, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedCuda]:
    """Nothing is computed: tensors have shapes only. What goes to the host has memory there, so
    nothing does."""
    monkeypatch.setattr("pruning.search.scoring.host_budget", lambda *_args: 0)
    with cuda.dry():
        yield cuda
