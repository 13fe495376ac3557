"""Functions on the threads of torch, and the directory that keeps them."""

import logging
from pathlib import Path

import numba
import numpy as np
import pytest
from numba import carray, types

from app.engine.compiled.openmp import (
    ParallelFunction,
    barrier,
    get_num_threads,
    get_thread,
    has_openmp,
    keep_compiled_in,
    pointer_to,
)
from tests.support.compiled import torch_threads
from tests.support.full_disk import full_disk

_to_counts = pointer_to(types.int64)


def count(address: int) -> None:
    """Every thread notes itself, and after the barrier how many there are."""
    counts = carray(_to_counts(address), 16)
    thread = get_thread()
    counts[thread] = 1
    barrier()
    counts[8 + thread] = counts[:8].sum() + 10 * get_num_threads()


@pytest.fixture
def kept_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    keep_compiled_in(tmp_path)
    return tmp_path


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_each_thread_of_torch_runs_it_once(num_threads: int) -> None:
    assert has_openmp()
    counts = np.zeros(16, dtype=np.int64)
    with torch_threads(num_threads):
        ParallelFunction(count)(counts.ctypes.data)
    idle = [0] * (8 - num_threads)
    assert counts.tolist() == [*[1] * num_threads, *idle, *[11 * num_threads] * num_threads, *idle]


def test_what_was_compiled_is_kept(kept_in: Path) -> None:
    first = ParallelFunction(count)
    kept = {file: file.stat().st_mtime_ns for file in kept_in.rglob("*.nb?")}
    assert len(kept) == 2
    again = ParallelFunction(count)
    assert (first._compiled.cache_hits, again._compiled.cache_hits) == (0, 1)
    assert {file: file.stat().st_mtime_ns for file in kept_in.rglob("*.nb?")} == kept


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_damaged_file_costs_nothing_but_time(
    kind: str, kept_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ParallelFunction(count)
    (file,) = kept_in.rglob(f"*.{kind}")
    file.write_bytes(file.read_bytes()[:40])
    counts = np.zeros(16, dtype=np.int64)
    ParallelFunction(count)(counts.ctypes.data)
    assert counts[0] == 1
    assert "compiled functions cannot be kept or read" in caplog.text


@pytest.mark.usefixtures("kept_in")
def test_a_full_disk_costs_nothing_but_time(caplog: pytest.LogCaptureFixture) -> None:
    counts = np.zeros(16, dtype=np.int64)
    with full_disk():
        function = ParallelFunction(count)
    function(counts.ctypes.data)
    assert counts[0] == 1
    assert "compiled functions cannot be kept or read" in caplog.text


def test_a_directory_that_cannot_be_written_costs_nothing_but_time(
    kept_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (file := kept_in / "file").touch()
    counts = np.zeros(16, dtype=np.int64)
    with caplog.at_level(logging.WARNING):
        keep_compiled_in(file)
    ParallelFunction(count)(counts.ctypes.data)
    assert counts[0] == 1
    assert "compiled functions are not kept" in caplog.text
