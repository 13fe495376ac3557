"""Publishing, killed or out of disk at every step, twice at once, or after others that died."""

import errno
import itertools
import multiprocessing
import os
import shutil
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from safetensors import SafetensorError

from pruning.checkpoints.publish import CheckpointExists, DiskFull, publish
from pruning.checkpoints.staging import STAGING
from pruning.checkpoints.store import MANIFEST, CheckpointStore, Manifest, file_entry
from tests.support.checkpoints import FILES, manifest_of, write
from tests.support.crashes import dies, fails

# From 3.12 on, Python warns of forks beside threads: the children here write files, and no more.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

NAME = "tiny@prn-1"


def publish_in(root: Path, name: str = NAME) -> Manifest:
    return publish(root / name, manifest_of(name), write)


def visible(root: Path) -> list[str]:
    """The names of what is published, all of which has to be whole."""
    store = CheckpointStore(root)
    for name in store.names():
        manifest = store.manifest(name)
        assert manifest.files.keys() == FILES.keys()
        for file, entry in manifest.files.items():
            assert file_entry(root / name / file) == entry
    assert store.holds(NAME) == (root / NAME).exists() == (NAME in store.names())
    return store.names()


def staged_in(root: Path) -> list[str]:
    return [path.name for path in (root / STAGING).glob("*")]


def nothing(_root: Path) -> None:
    """A data directory that is not there yet."""


def the_same(root: Path) -> None:
    publish_in(root)


@pytest.mark.parametrize("before", [nothing, the_same])
def test_a_kill_at_any_step_leaves_all_or_nothing(
    tmp_path: Path, before: Callable[[Path], None]
) -> None:
    for step in itertools.count(1):
        root = tmp_path / str(step) / "checkpoints"
        others = ["tiny@prn-0"] if before is not nothing else []
        for name in others:
            publish_in(root, name)
        before(root)
        is_dead = dies(lambda root=root: publish_in(root), step)  # type: ignore[misc]  # bound now
        found = visible(root)
        assert found in (others, [*others, NAME])
        assert publish_in(root).files.keys() == FILES.keys()
        assert visible(root) == [*others, NAME]
        assert staged_in(root) == []
        if not is_dead:
            assert found == [*others, NAME]
            assert step > (5 if before is the_same else 20)
            break
        shutil.rmtree(root.parent)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_step_leaves_nothing_and_says_so(tmp_path: Path, number: int) -> None:
    for step in itertools.count(1):
        root = tmp_path / str(step) / "checkpoints"
        try:
            with fails(OSError(number, "full"), step):
                publish_in(root)
        except DiskFull:
            pass
        except OSError:
            assert not root.exists()  # before there was anything to look at
        else:
            break
        # whole if its last sync failed: somebody may have seen it by then
        assert visible(root) in ([], [NAME])
        assert not any(name for name in staged_in(root) if not name.endswith(".lock"))
        publish_in(root)
        assert visible(root) == [NAME]
    assert step > 20


def test_a_full_disk_is_known_by_the_words_of_safetensors(tmp_path: Path) -> None:
    def full(directory: Path) -> None:
        (directory / "half").write_text("written")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(DiskFull, match=r"need 40 bytes, but only \d+ are free"):
        publish(tmp_path / NAME, manifest_of(), full)
    assert visible(tmp_path) == staged_in(tmp_path) == []


def test_what_cannot_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=39)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(DiskFull, match="need 40 bytes, but only 39 are free"):
        publish(tmp_path / NAME, manifest_of(), lambda _directory: pytest.fail("begun"))
    assert visible(tmp_path) == staged_in(tmp_path) == []


@pytest.mark.parametrize("error", [OSError(errno.EIO, "bad disk"), SafetensorError("bad")])
def test_other_failures_stay_what_they_are(tmp_path: Path, error: Exception) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_text("written")
        raise error

    with pytest.raises(type(error), match="bad"):
        publish(tmp_path / NAME, manifest_of(), fail)
    assert visible(tmp_path) == staged_in(tmp_path) == []


def test_all_that_leads_to_the_files_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In time, too: the content before the name."""
    synced: list[Path] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    root = tmp_path / "data" / "checkpoints"
    publish_in(root)
    staging = root / STAGING
    (folder,) = {path.parent for path in synced if path.name == MANIFEST}
    assert synced[:3] == [tmp_path, tmp_path / "data", root]
    assert synced[3:] == [*(folder / name for name in (*FILES, MANIFEST)), folder, root]
    assert folder.parent == staging
    publish_in(root)
    assert synced[-1] == root  # the process that published it may have died before that


def test_who_is_refused_at_the_last_moment_publishes_nothing(tmp_path: Path) -> None:
    def confirm() -> None:
        (folder,) = (tmp_path / STAGING).glob("*/")
        assert (folder / MANIFEST).is_file()
        raise LookupError("the job is gone")

    with pytest.raises(LookupError, match="gone"):
        publish(tmp_path / NAME, manifest_of(), write, confirm)
    assert visible(tmp_path) == staged_in(tmp_path) == []


def test_publishing_the_same_twice_keeps_the_first(tmp_path: Path) -> None:
    first = publish_in(tmp_path)
    later = manifest_of()
    assert publish(tmp_path / NAME, later, lambda _directory: pytest.fail("written")) == first


def test_a_target_that_appeared_meanwhile_is_kept_or_refused(tmp_path: Path) -> None:
    def overtaken(directory: Path) -> None:
        write(directory)
        publish_in(tmp_path)

    same = publish(tmp_path / NAME, manifest_of(), overtaken)
    assert same == CheckpointStore(tmp_path).manifest(NAME)
    shutil.rmtree(tmp_path / NAME)
    with pytest.raises(CheckpointExists):
        publish(tmp_path / NAME, manifest_of(spec_digest="other"), overtaken)
    assert visible(tmp_path) == [NAME]


def a_folder_with(file: str, content: bytes) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        path.mkdir()
        (path / file).write_bytes(content)

    return make


FOREIGN: dict[str, Callable[[Path], object]] = {
    "another checkpoint": lambda path: publish(path, manifest_of(spec_digest="other"), write),
    "a cut manifest": a_folder_with(MANIFEST, b"\xff{"),
    "a manifest of another kind": a_folder_with(MANIFEST, b"[]"),
    "a folder": a_folder_with("note.txt", b"mine"),
    "a file": lambda path: path.write_text("mine"),
}


@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
def test_something_else_is_never_overwritten(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / NAME)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointExists):
        publish_in(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_several_processes_at_once_make_one_checkpoint(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    number = 4
    written, answers = fork.Barrier(number), fork.SimpleQueue()

    def run(barrier: Barrier) -> None:
        def write_at_once(directory: Path) -> None:
            write(directory)
            (directory / "config.json").write_text(str(os.getpid()))
            barrier.wait(100)

        answers.put(publish(tmp_path / NAME, manifest_of(), write_at_once).files)

    processes = [fork.Process(target=run, args=(written,), daemon=True) for _ in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert visible(tmp_path) == [NAME]
    assert staged_in(tmp_path) == []
    kept = CheckpointStore(tmp_path).manifest(NAME).files
    assert [answers.get() for _ in range(number)] == [kept] * number
