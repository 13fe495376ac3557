"""Compiled blocks in tests: what was compiled is kept for all of them, as it takes seconds."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from app.engine.compiled.openmp import keep_compiled_in
from app.engine.tuning import Tuner


@pytest.fixture(autouse=True, scope="session")
def _compiled_code_is_kept(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """For all tests of this process, and for later ones where pytest has a cache."""
    if pytestconfig.pluginmanager.hasplugin("cacheprovider"):
        keep_compiled_in(pytestconfig.cache.mkdir("compiled"))
    else:
        keep_compiled_in(tmp_path_factory.mktemp("compiled"))


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """As many threads of torch, and so of compiled functions."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def always(way: str) -> Tuner:
    """A tuner that takes this way through the blocks wherever it is one of several."""
    return Tuner(always=frozenset({way}))
