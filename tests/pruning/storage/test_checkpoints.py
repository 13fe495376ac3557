"""Checkpoints of this machine and of a store as one: listed from here, fetched when needed."""

import gc
import threading
from pathlib import Path

import pytest

from pruning.checkpoints.publish import publish
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointNotFound
from pruning.storage.cache import CheckpointCache
from pruning.storage.checkpoints import StoredCheckpoints
from pruning.storage.store import ObjectStore, StoreDenied, StoreUnavailable
from pruning.storage.transfer import send
from tests.support.api_fixtures import publish_pruned
from tests.support.checkpoints import FILES, manifest_of, write
from tests.support.object_stores import ObservedStore, folder_store
from tests.support.waiting import wait_until

NAME = "tiny@prn-1"


def upload(store: ObjectStore, folder: Path, name: str = NAME) -> None:
    publish(folder / name, manifest_of(name), write)
    send(store, folder / name, name)


def stored(
    store: ObjectStore, tmp_path: Path, *, max_bytes: int = 10**9, refresh_s: float = 1e9
) -> StoredCheckpoints:
    """Of another machine than the one that has uploaded."""
    cache = CheckpointCache(tmp_path / "cache", max_bytes)
    return StoredCheckpoints(tmp_path / "here", store, cache, refresh_s=refresh_s)


def test_what_is_in_the_store_is_listed_fetched_once_and_deleted(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    upload(object_store, tmp_path / "there")
    store = ObservedStore(object_store)
    checkpoints = stored(store, tmp_path)
    checkpoints.refresh()
    assert checkpoints.names() == [NAME]
    assert checkpoints.holds(NAME)
    assert checkpoints.manifest(NAME).files.keys() == FILES.keys()
    assert not checkpoints.is_here(NAME)
    for _ in range(2):
        with checkpoints.held(NAME) as path:
            assert {name: (path / name).read_bytes() for name in FILES} == FILES
    assert store.calls["blocks"] == len(FILES)
    assert checkpoints.is_here(NAME)
    checkpoints.delete(NAME)
    assert (checkpoints.names(), object_store.versions()) == ([], {})
    with pytest.raises(CheckpointNotFound), checkpoints.held(NAME):
        pass


def test_one_that_is_here_is_read_here(tmp_path: Path) -> None:
    remote = folder_store(tmp_path / "store")
    upload(remote, tmp_path / "here")
    store = ObservedStore(remote)
    checkpoints = stored(store, tmp_path)
    checkpoints.refresh()
    with checkpoints.held(NAME) as path:
        assert path == tmp_path / "here" / NAME
    assert checkpoints.is_here(NAME)
    assert store.calls["blocks"] == 0
    checkpoints.delete(NAME)
    assert (list((tmp_path / "here").glob("[!.]*")), remote.versions()) == ([], {})


@pytest.mark.parametrize("error", [StoreUnavailable("away"), StoreDenied("denied")])
def test_a_store_that_is_away_is_listed_as_it_was_and_missed_only_for_its_files(
    tmp_path: Path, error: Exception
) -> None:
    remote = folder_store(tmp_path / "store")
    upload(remote, tmp_path / "there")
    stored(remote, tmp_path).refresh()

    def fail(_method: str) -> None:
        raise error

    away = ObservedStore(remote, fail)
    checkpoints = stored(away, tmp_path, refresh_s=0)
    assert checkpoints.names() == [NAME]
    wait_until(lambda: away.calls["versions"], "an attempt to refresh the list")
    assert checkpoints.manifest(NAME).name == NAME
    with pytest.raises(type(error)), checkpoints.held(NAME):
        pass
    with pytest.raises(type(error)):
        checkpoints.delete(NAME)
    assert checkpoints.names() == [NAME]


def test_a_slow_store_delays_no_list(tmp_path: Path) -> None:
    remote = folder_store(tmp_path / "store")
    upload(remote, tmp_path / "there")
    answers = threading.Event()
    slow = ObservedStore(remote, lambda _method: answers.wait(100))
    checkpoints = stored(slow, tmp_path, refresh_s=0)
    assert checkpoints.names() == []
    wait_until(lambda: slow.calls["versions"], "the list is read")
    for _ in range(3):
        assert checkpoints.names() == []
    assert slow.calls["versions"] == 1
    answers.set()
    wait_until(lambda: checkpoints.names() == [NAME], "the list is there")


def test_a_list_is_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    remote = folder_store(tmp_path / "store")
    answers, is_away = threading.Event(), True

    def answer(_method: str) -> None:
        answers.wait(100)
        if is_away:
            raise StoreUnavailable("away")

    checkpoints = stored(ObservedStore(remote, answer), tmp_path)
    for _ in range(2):
        checkpoints.refresh_within(0.05)
    assert checkpoints.names() == []
    answers.set()
    checkpoints.refresh_within(60)
    is_away = False
    upload(remote, tmp_path / "there")
    checkpoints.refresh_within(60)
    assert checkpoints.names() == [NAME]
    upload(remote, tmp_path / "there", "tiny@prn-2")
    checkpoints.refresh_within(60)
    assert checkpoints.names() == [NAME, "tiny@prn-2"]


def test_lists_follow_the_store_and_read_what_has_changed(tmp_path: Path) -> None:
    remote = folder_store(tmp_path / "store")
    upload(remote, tmp_path / "there")
    upload(remote, tmp_path / "there", "tiny@prn-2")
    remote.put_manifest("tiny@broken", b"{")
    remote.put_manifest("tiny@other", manifest_of(NAME).to_json().encode())
    remote.put_manifest("no name", b"{")
    store = ObservedStore(remote)
    checkpoints = stored(store, tmp_path)
    for _ in range(2):
        checkpoints.refresh()
        assert checkpoints.names() == ["tiny@broken", "tiny@other", NAME, "tiny@prn-2"]
        for name, reason in {"tiny@broken": "is not JSON", "tiny@other": "is that of"}.items():
            with pytest.raises(CheckpointCorrupt, match=reason):
                checkpoints.manifest(name)
    assert store.calls["manifest"] == 4
    remote.delete("tiny@prn-2")
    remote.delete(NAME)
    upload(remote, tmp_path / "again")
    checkpoints.refresh()
    assert checkpoints.names() == ["tiny@broken", "tiny@other", NAME]
    assert store.calls["manifest"] == 5


def test_an_object_that_is_gone_or_wrong_is_a_corrupt_checkpoint(tmp_path: Path) -> None:
    remote = folder_store(tmp_path / "store")
    upload(remote, tmp_path / "there")
    checkpoints = stored(remote, tmp_path)
    checkpoints.refresh()
    (digest, *_) = remote.sizes(NAME)
    (tmp_path / "store" / "objects" / NAME / digest).write_bytes(b"wrong")
    wrong = pytest.raises(CheckpointCorrupt, match="does not match its manifest")
    with wrong, checkpoints.held(NAME):
        pass
    (tmp_path / "store" / "objects" / NAME / digest).unlink()
    with pytest.raises(CheckpointCorrupt, match="not found: cannot read"), checkpoints.held(NAME):
        pass
    assert not checkpoints.is_here(NAME)


def test_the_files_of_a_loaded_model_stay_until_it_is_dropped(
    tiny_models_dir: Path, tmp_path: Path
) -> None:
    publish_pruned(tiny_models_dir.parent)
    remote = folder_store(tmp_path / "store")
    send(remote, tiny_models_dir.parent / "checkpoints" / NAME, NAME)
    checkpoints = stored(remote, tmp_path / "other")
    checkpoints.refresh()
    loaded = checkpoints.open(NAME)
    folder = loaded.path
    small = CheckpointCache(tmp_path / "other" / "cache", 1)
    assert not small.drop(folder.name)
    del loaded
    gc.collect()
    (folder / "model.safetensors").write_bytes(b"damaged on this disk")
    assert checkpoints.open(NAME).model.config.num_hidden_layers == 3
    gc.collect()
    assert small.drop(folder.name)
