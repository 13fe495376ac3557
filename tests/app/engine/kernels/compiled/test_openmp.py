"""Functions on the threads of torch, and the directory that keeps them."""

import logging
import os
import stat
from pathlib import Path

import pytest
from numba.core.errors import NumbaError

from app.engine.kernels.compiled.openmp import ParallelFunction, compile_now, keep_compiled_in
from tests.support.compilable import broken, count
from tests.support.compiled import counted, torch_threads
from tests.support.full_disk import full_disk


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_each_thread_of_torch_runs_it_once(num_threads: int) -> None:
    with torch_threads(num_threads):
        counts = counted(ParallelFunction(count))
    idle = [0] * (8 - num_threads)
    assert counts == [*[1] * num_threads, *idle, *[11 * num_threads] * num_threads, *idle]


def test_what_was_compiled_is_kept(kept_in: Path) -> None:
    first, again = ParallelFunction(count), ParallelFunction(count)
    assert not first.is_kept
    counted(first)
    kept = {file: file.stat().st_mtime_ns for file in kept_in.rglob("*.nb?")}
    assert len(kept) == 2
    assert again.is_kept
    counted(again)
    assert (first._compiled.cache_hits, again._compiled.cache_hits) == (0, 1)
    assert {file: file.stat().st_mtime_ns for file in kept_in.rglob("*.nb?")} == kept


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
def test_a_damaged_file_costs_nothing_but_time(
    kind: str, kept_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counted(ParallelFunction(count))
    (file,) = kept_in.rglob(f"*.{kind}")
    file.write_bytes(file.read_bytes()[:40])
    assert counted(ParallelFunction(count))[0] == 1
    assert "damaged files are compiled again" in caplog.text


@pytest.mark.usefixtures("kept_in")
def test_a_full_disk_costs_nothing_but_time(caplog: pytest.LogCaptureFixture) -> None:
    with full_disk():
        assert counted(ParallelFunction(count))[0] == 1
    assert "compiled functions cannot be kept or read" in caplog.text


def test_a_directory_that_cannot_be_written_costs_nothing_but_time(
    kept_in: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (file := kept_in / "file").touch()
    with caplog.at_level(logging.WARNING):
        keep_compiled_in(file)
    assert counted(ParallelFunction(count))[0] == 1
    assert "compiled functions are not kept" in caplog.text


@pytest.mark.parametrize(
    ("mode", "owner", "reason"),
    [
        (0o770, None, "writable by other users"),
        (0o707, None, "writable by other users"),
        (0o700, 65_534, "belongs to user 65534"),
    ],
)
@pytest.mark.usefixtures("kept_in")
def test_what_somebody_else_can_write_is_not_read(
    mode: int, owner: int | None, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if owner is not None and os.geteuid() != 0:
        pytest.skip("only root can give a folder to another user")
    keep_compiled_in(tmp_path)
    counted(ParallelFunction(count))
    (folder,) = tmp_path.glob("compiled-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(mode)
    if owner is not None:
        os.chown(folder, owner, -1)
    with caplog.at_level(logging.WARNING):
        keep_compiled_in(tmp_path)
    assert not ParallelFunction(count).is_kept
    assert counted(ParallelFunction(count))[0] == 1
    assert "compiled functions are not kept" in caplog.text
    assert reason in caplog.text


def test_what_cannot_be_compiled_is_never_ready() -> None:
    with pytest.raises(NumbaError):
        compile_now(broken)
    function = ParallelFunction(broken)
    with pytest.raises(NumbaError):
        function.load()
    assert not function.is_ready
