"""Fixtures of the simulated device; registered by conftest."""

from collections.abc import Iterator

import pytest

from tests.support.simcuda.device import SimulatedCuda, simulated_cuda


@pytest.fixture
def cuda() -> Iterator[SimulatedCuda]:
    """During the test, torch has two simulated CUDA devices of 80 GiB."""
    with simulated_cuda() as device:
        yield device
