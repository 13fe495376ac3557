"""The staging folder: what the dead leave goes, what the living write stays."""

import fcntl
import itertools
import multiprocessing
import os
import signal
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from pruning.checkpoints.staging import STAGING, discard_staged, remove, staged, sweep
from tests.support.crashes import dies

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_folder_of_a_living_process_stays_and_that_of_a_dead_one_goes(tmp_path: Path) -> None:
    """However old either is; the sweep is another process's."""
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()

    def write(begun: Event) -> None:
        with staged(tmp_path / "tiny@prn-1") as folder:
            (folder / "half").write_text("written")
            begun.set()
            signal.pause()

    writer = fork.Process(target=write, args=(begun,), daemon=True)
    writer.start()
    assert begun.wait(100)
    (folder,) = (tmp_path / STAGING).glob("*/")
    os.utime(folder, (0, 0))
    sweep(tmp_path)
    assert (folder / "half").read_text() == "written"
    writer.kill()
    writer.join()
    sweep(tmp_path)
    assert names_in(tmp_path / STAGING) == []


def test_a_sweep_may_come_between_a_lock_file_and_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock

    def sweep_first(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        sweep(tmp_path)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", sweep_first)
    with staged(tmp_path / "tiny@prn-1") as folder:
        sweep(tmp_path)
        assert folder.is_dir()
    assert names_in(tmp_path / STAGING) == []


def test_a_sweep_that_dies_is_finished_by_the_next(tmp_path: Path) -> None:
    def killed() -> None:
        with staged(tmp_path / "tiny@prn-1") as folder:
            (folder / "half").write_text("written")
            os.kill(os.getpid(), signal.SIGKILL)

    for step in itertools.count(1):
        assert dies(killed, step=10**9)
        is_dead = dies(lambda: sweep(tmp_path), step)
        sweep(tmp_path)
        assert names_in(tmp_path / STAGING) == []
        if not is_dead:
            break
    assert step > 5


def test_there_may_be_nothing_to_sweep(tmp_path: Path) -> None:
    sweep(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_folder_that_is_a_users_own_is_left_alone(tmp_path: Path) -> None:
    mine = [tmp_path / STAGING / name for name in ("notes", "tiny-1", "f" * 31, "f" * 33)]
    for folder in mine:
        folder.mkdir(parents=True)
    (tmp_path / STAGING / "poetry.lock").touch()
    sweep(tmp_path)
    assert names_in(tmp_path / STAGING) == sorted(["poetry.lock", *(path.name for path in mine)])


def test_what_dies_while_it_removes_has_made_it_invisible_or_not_begun(tmp_path: Path) -> None:
    path = tmp_path / "tiny@prn-1"
    for step in itertools.count(1):
        path.mkdir()
        (path / "a").write_text("a")
        (path / "b").write_text("b")
        is_dead = dies(lambda: remove(path), step)
        if path.exists():
            assert names_in(path) == ["a", "b"]
            remove(path)
        sweep(tmp_path)
        assert [*path.parent.iterdir()] == [tmp_path / STAGING]
        assert names_in(tmp_path / STAGING) == []
        if not is_dead:
            break
    assert step > 5


def test_a_writer_can_be_thwarted_and_others_not_along_with_it(tmp_path: Path) -> None:
    with staged(tmp_path / "tiny") as wanted, staged(tmp_path / "tiny-2") as other:
        discard_staged(tmp_path / "tiny")
        assert other.is_dir()
        with pytest.raises(FileNotFoundError):
            wanted.rename(tmp_path / "tiny")
    assert names_in(tmp_path / STAGING) == []


def test_a_link_goes_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").touch()
    root = tmp_path / "checkpoints"
    (root / STAGING).mkdir(parents=True)
    (root / "tiny@prn-1").symlink_to(other)
    (root / STAGING / f"tiny@prn-2-{'0' * 32}").symlink_to(other)
    remove(root / "tiny@prn-1")
    sweep(root)
    assert (names_in(root), names_in(root / STAGING)) == ([STAGING], [])
    assert names_in(other) == ["kept"]
