"""What all tests share: fixtures by subject, and one thread for models too small for two."""

import pytest
import torch

pytest_plugins = ["tests.model_fixtures", "tests.redis_fixtures", "tests.worker_fixtures"]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)
