"""A store in a folder that others write to: links, pipes, wrong digests, manifests without end."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pruning.checkpoints.publish import publish
from pruning.checkpoints.store import CheckpointCorrupt
from pruning.records import MAX_BYTES
from pruning.storage.cache import CheckpointCache
from pruning.storage.checkpoints import StoredCheckpoints
from pruning.storage.store import ObjectStore, StoreError
from pruning.storage.transfer import send
from tests.support.checkpoints import FILES, manifest_of, write
from tests.support.object_stores import folder_store

pytestmark = pytest.mark.timeout(60)

BAD, GOOD = "tiny@bad", "tiny@good"


def link(file: Path, other: Path) -> None:
    file.unlink()
    file.symlink_to(other)


def pipe(file: Path, _other: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def sparse(file: Path, _other: Path) -> None:
    os.truncate(file, 2**40)  # takes no room on the disk


def other_content(file: Path, _other: Path) -> None:
    file.write_bytes(b"x" * file.stat().st_size)


FAULTS: Mapping[str, Callable[[Path, Path], None]] = {
    each.__name__: each for each in (link, pipe, sparse, other_content)
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(folder: Path, tmp_path: Path) -> ObjectStore:
    found = folder_store(folder)
    for name in (GOOD, BAD):
        publish(tmp_path / "there" / name, manifest_of(name), write)
        send(found, tmp_path / "there" / name, name)
    (tmp_path / "secret").write_text("a secret")
    return found


@pytest.fixture
def checkpoints(store: ObjectStore, tmp_path: Path) -> StoredCheckpoints:
    cache = CheckpointCache(tmp_path / "cache", 2**30)
    return StoredCheckpoints(tmp_path / "here", store, cache, refresh_s=1e9)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_manifest_hides_no_other(
    checkpoints: StoredCheckpoints, folder: Path, tmp_path: Path, fault: str
) -> None:
    FAULTS[fault](folder / "manifests" / f"{BAD}.json", tmp_path / "secret")
    checkpoints.refresh()
    assert GOOD in checkpoints.names()
    with checkpoints.held(GOOD) as path:
        assert {name: (path / name).read_bytes() for name in FILES} == FILES
    if BAD in checkpoints.names():
        with pytest.raises(CheckpointCorrupt) as caught:
            checkpoints.manifest(BAD)
        assert "a secret" not in str(caught.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_object_is_an_error_of_its_checkpoint(
    checkpoints: StoredCheckpoints, folder: Path, tmp_path: Path, fault: str
) -> None:
    checkpoints.refresh()
    for file in (folder / "objects" / BAD).iterdir():
        FAULTS[fault](file, tmp_path / "secret")
    with pytest.raises((StoreError, CheckpointCorrupt)), checkpoints.held(BAD):
        pass
    with checkpoints.held(GOOD) as path:
        assert {name: (path / name).read_bytes() for name in FILES} == FILES
    cached = [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]
    assert not [file for file in cached if b"a secret" in file.read_bytes()]


def test_a_manifest_has_an_end(folder: Path, store: ObjectStore) -> None:
    file = folder / "manifests" / f"{BAD}.json"
    os.truncate(file, MAX_BYTES + 1)
    with pytest.raises(StoreError, match=f"more than {MAX_BYTES} bytes"):
        store.manifest(BAD)
