"""Compiled blocks in tests: what was compiled is kept for all of them, as it takes seconds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numba
import numpy as np
import pytest
import torch
from filelock import FileLock

from app.engine.autotuning import Autotuner
from app.engine.kernels.compiled.integers import INTEGER_PRODUCT
from app.engine.kernels.compiled.model import BLOCKS
from app.engine.kernels.compiled.openmp import ParallelFunction, keep_compiled_in
from app.engine.kernels.compiled.product import PRODUCTS_OF_ROWS


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


def always(*kernels: str, dtype: torch.dtype = torch.float32) -> Autotuner:
    """A tuner that takes these kernels wherever they are among several. Compiled ones are ready for
    this type."""
    load_compiled(dtype)
    return Autotuner(always=frozenset(kernels))


def load_compiled(dtype: torch.dtype = torch.float32) -> None:
    """Make all compiled functions for this type ready. One process at a time compiles."""
    functions = [BLOCKS[dtype], PRODUCTS_OF_ROWS[dtype]]
    if dtype == torch.bfloat16:
        functions.append(INTEGER_PRODUCT)
    missing = [function for function in functions if not function.is_ready]
    if missing:
        assert numba.config.CACHE_DIR, "compile in a test: what is compiled at import is not kept"
        with FileLock(Path(numba.config.CACHE_DIR) / "compiling.lock"):
            for function in missing:
                function.load()


def counted(function: ParallelFunction) -> list[int]:
    """What all threads wrote that ran ``count``."""
    counts = np.zeros(16, dtype=np.int64)
    function.load()
    function(counts.ctypes.data)
    return counts.tolist()


@pytest.fixture
def kept_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that keeps what the test compiles."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    keep_compiled_in(tmp_path)
    return tmp_path
