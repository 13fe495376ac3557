import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors are faster without a second one."""
    torch.set_num_threads(1)
