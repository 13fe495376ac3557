"""Every test of this folder needs the simulated device, also where a child process uses it."""

import pytest

from tests.support.simcuda import build


@pytest.fixture(autouse=True)
def _simulated_device() -> None:
    build.library()
