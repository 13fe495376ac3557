"""A folder has one healing at a time, and goes with its last file."""

import os
import signal
from pathlib import Path

import pytest

from pruning.healing.lock import LOCK, HealingInProgress, locked, remove_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "healing" / "a"


def test_a_second_healing_is_refused_until_the_first_has_ended(folder: Path) -> None:
    with locked(folder, "tiny@a"):
        with (
            pytest.raises(HealingInProgress, match="tiny@a is being healed"),
            locked(folder, "tiny@a"),
        ):
            pass
        with locked(folder.with_name("b"), "tiny@b"):
            assert sorted(path.name for path in folder.parent.iterdir()) == ["a", "b"]
    with locked(folder, "tiny@a"):
        pass
    assert not folder.parent.exists()


def test_files_of_a_training_are_kept_for_the_next_one(folder: Path) -> None:
    with locked(folder, "tiny@a"):
        (folder / "state").touch()
    assert sorted(path.name for path in folder.iterdir()) == [LOCK, "state"]
    with locked(folder, "tiny@a"):
        remove_folder(folder)
    assert not folder.parent.exists()


def test_a_process_that_dies_gives_it_back(folder: Path) -> None:
    has_it, tells = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(folder, "tiny@a"):
            os.write(tells, b"1")
            signal.pause()
    assert os.read(has_it, 1)
    asked = 0

    def kill() -> None:
        nonlocal asked
        asked += 1
        os.kill(child, signal.SIGKILL)

    try:
        with locked(folder, "tiny@a", patience_s=30, ask=kill):
            assert asked
    finally:
        os.waitpid(child, 0)
        os.close(has_it)
        os.close(tells)
    assert not folder.exists()


def test_one_who_waits_can_be_told_to_stop(folder: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with (
        locked(folder, "tiny@a"),
        pytest.raises(KeyboardInterrupt),
        locked(folder, "tiny@a", patience_s=30, ask=stop),
    ):
        pass


def test_a_folder_that_is_removed_while_another_waits_is_made_again(folder: Path) -> None:
    """A lock on a removed file would be invisible to the next process, so it does not count."""
    with locked(folder, "tiny@a"):
        remove_folder(folder)
        with locked(folder, "tiny@a"):
            assert (folder / LOCK).exists()
            with pytest.raises(HealingInProgress), locked(folder, "tiny@a"):
                pass
    assert not folder.parent.exists()


def test_a_link_in_its_place_leads_to_no_file_of_another(folder: Path, tmp_path: Path) -> None:
    """Otherwise, write access to the checkpoints would be enough to delete other files."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "kept").touch()
    folder.parent.mkdir()
    folder.symlink_to(other)
    remove_folder(folder)
    assert not folder.is_symlink()
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(other)
    with locked(folder, "tiny@a"):
        (folder / "state").touch()
    assert [path.name for path in other.iterdir()] == ["kept"]
    assert (folder / "state").exists()
