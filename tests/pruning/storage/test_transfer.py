"""Uploads that are killed, refused or repeated, and downloads of what is not what it says."""

import errno
import itertools
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pruning.checkpoints.publish import publish
from pruning.checkpoints.store import MANIFEST, CheckpointCorrupt, FileEntry
from pruning.storage.store import (
    ObjectCorrupt,
    ObjectStore,
    StoreDenied,
    StoreUnavailable,
)
from pruning.storage.transfer import Sent, receive, received_manifest, send
from tests.support.checkpoints import FILES, manifest_of, write
from tests.support.crashes import dies, fails
from tests.support.object_stores import ObservedStore, folder_store

# From 3.12 on, Python warns of forks beside threads: the children here write files, and no more.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

NAME = "tiny@prn-1"
NUM_BYTES = sum(map(len, FILES.values()))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    publish(tmp_path / "checkpoints" / NAME, manifest_of(NAME), write)
    return tmp_path / "checkpoints" / NAME


def check_whole(store: ObjectStore, folder: Path) -> None:
    """Every visible checkpoint can be read, file by file."""
    for name in store.versions():
        manifest, _ = received_manifest(store, name)
        assert manifest.files.keys() == FILES.keys()
        for file, entry in manifest.files.items():
            receive(store, name, entry, folder / "received")
            assert (folder / "received").read_bytes() == FILES[file]


def test_the_manifest_goes_last_and_a_second_upload_sends_nothing(
    object_store: ObjectStore, checkpoint: Path, tmp_path: Path
) -> None:
    store = ObservedStore(object_store)
    assert send(store, checkpoint, NAME) == Sent(2, NUM_BYTES)
    assert (store.calls["put"], store.order[-1]) == (2, "put_manifest")
    assert store.versions().keys() == {NAME}
    check_whole(store, tmp_path)
    assert store.manifest(NAME) == (checkpoint / MANIFEST).read_bytes()
    again = ObservedStore(object_store)
    assert send(again, checkpoint, NAME) == Sent(0, 0)
    assert (again.calls["put"], again.calls["put_manifest"]) == (0, 0)


@pytest.mark.parametrize(
    "error",
    [StoreUnavailable("away"), pytest.param(StoreDenied("denied"), marks=pytest.mark.slow)],
)
def test_an_error_at_any_call_shows_nothing_and_the_next_upload_sends_the_rest(
    object_store: ObjectStore, checkpoint: Path, tmp_path: Path, error: Exception
) -> None:
    for step in itertools.count(1):
        object_store.delete(NAME)
        try:
            send(ObservedStore(object_store, raises_at(step, error)), checkpoint, NAME)
        except type(error):
            assert object_store.versions() == {}
        else:
            break
        there = object_store.sizes(NAME)
        assert send(object_store, checkpoint, NAME).num_files == len(FILES) - len(there)
        check_whole(object_store, tmp_path)
    assert step == len(["sizes", *FILES, "manifest", "put_manifest"]) + 1


def raises_at(step: int, error: Exception) -> Callable[[str], None]:
    """Raise ``error`` at that call."""
    calls = itertools.count(1)

    def call(_method: str) -> None:
        if next(calls) == step:
            raise error

    return call


@pytest.mark.slow
def test_a_kill_at_any_call_of_the_system_leaves_all_or_nothing(
    checkpoint: Path, tmp_path: Path
) -> None:
    for step in itertools.count(1):
        folder = tmp_path / str(step)
        store = folder_store(folder / "store")
        is_dead = dies(lambda store=store: send(store, checkpoint, NAME), step)  # type: ignore[misc]  # bound now
        folder.mkdir(exist_ok=True)
        check_whole(store, folder)
        assert is_dead or store.versions().keys() == {NAME}
        there = store.sizes(NAME)
        assert send(store, checkpoint, NAME).num_files == len(FILES) - len(there)
        assert store.versions().keys() == {NAME}
        check_whole(store, folder)
        shutil.rmtree(folder)
        if not is_dead:
            assert step > 20
            break


def test_a_full_disk_of_the_store_is_an_error_of_the_store(
    checkpoint: Path, tmp_path: Path
) -> None:
    for step in itertools.count(1):
        store = folder_store(tmp_path / str(step))
        try:
            with fails(OSError(errno.ENOSPC, "full"), step):
                send(store, checkpoint, NAME)
        except (StoreUnavailable, CheckpointCorrupt, OSError):  # it is read first
            check_whole(store, tmp_path)
        else:
            break
    assert step > 20


def test_a_file_that_has_changed_is_not_sent(object_store: ObjectStore, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").write_bytes(b"other!!")
    with pytest.raises(CheckpointCorrupt, match="changed after it was published"):
        send(object_store, checkpoint, NAME)
    assert object_store.versions() == {}


def test_an_upload_ends_when_the_job_is_gone(object_store: ObjectStore, checkpoint: Path) -> None:
    class Gone(Exception):
        pass

    def confirm() -> None:
        raise Gone

    with pytest.raises(Gone):
        send(object_store, checkpoint, NAME, confirm)
    assert (object_store.versions(), object_store.sizes(NAME)) == ({}, {})


def spoil(store: ObjectStore, digest: str, content: bytes, folder: Path) -> None:
    (folder / "spoilt").write_bytes(content)
    store.put(NAME, [(digest, folder / "spoilt")])


@pytest.mark.parametrize("content", [b"Weights", b"weight", b"weights and more", b""])
def test_an_object_of_another_content_does_not_arrive(
    object_store: ObjectStore, checkpoint: Path, tmp_path: Path, content: bytes
) -> None:
    send(object_store, checkpoint, NAME)
    entry = received_manifest(object_store, NAME)[0].files["model.safetensors"]
    spoil(object_store, entry.sha256, content, tmp_path)
    (tmp_path / "cache").mkdir()
    with pytest.raises(ObjectCorrupt, match="does not match its manifest"):
        receive(object_store, NAME, entry, tmp_path / "cache" / "model.safetensors")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("file", ["../escaped", "/etc/escaped", "a/../../b", MANIFEST, "."])
def test_a_manifest_whose_files_lead_elsewhere_is_refused(tmp_path: Path, file: str) -> None:
    store = folder_store(tmp_path / "store")
    manifest = replace(manifest_of(NAME), files={file: FileEntry(1, "0" * 64)})
    store.put_manifest(NAME, manifest.to_json().encode())
    with pytest.raises(CheckpointCorrupt, match="invalid file name"):
        received_manifest(store, NAME)


@pytest.mark.parametrize(
    "spoilt", [lambda text: text[: len(text) // 2], lambda _: b"\xff\xfe", lambda _: b"[]"]
)
def test_a_broken_manifest_is_no_checkpoint(
    tmp_path: Path, spoilt: Callable[[bytes], bytes]
) -> None:
    store = folder_store(tmp_path / "store")
    store.put_manifest(NAME, spoilt(manifest_of(NAME).to_json().encode()))
    with pytest.raises(CheckpointCorrupt, match="is not a manifest"):
        received_manifest(store, NAME)
