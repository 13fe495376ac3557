"""The contract of object stores, over every implementation: a folder, a real S3 server, a hub."""

import hashlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random
from threading import Thread

import pytest

from pruning.storage.location import open_store
from pruning.storage.store import ObjectMissing, ObjectStore, StoreDenied, StoreUnavailable
from pruning.store_url import StoreUrl
from tests.support.hub_repository import WritableHub

NAME = "tiny@prn-1+healed"
LARGE = bytes(range(256)) * 4 * 20_000  # two blocks


def put(store: ObjectStore, tmp_path: Path, content: bytes, name: str = NAME) -> str:
    digest = hashlib.sha256(content).hexdigest()
    (tmp_path / digest).write_bytes(content)
    store.put(name, [(digest, tmp_path / digest)])
    return digest


def test_an_empty_store_has_nothing(object_store: ObjectStore) -> None:
    assert object_store.versions() == {}
    assert object_store.sizes(NAME) == {}
    with pytest.raises(ObjectMissing):
        object_store.manifest(NAME)
    with pytest.raises(ObjectMissing):
        list(object_store.blocks(NAME, "0" * 64))
    object_store.delete(NAME)


def test_objects_come_back_and_are_not_a_checkpoint(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    digests = {put(object_store, tmp_path, content): content for content in (b"", b"x", LARGE)}
    sizes = {digest: len(content) for digest, content in digests.items()}
    assert object_store.sizes(NAME) == sizes
    for digest, content in digests.items():
        assert b"".join(object_store.blocks(NAME, digest)) == content
    assert object_store.versions() == {}
    assert object_store.sizes("another") == {}


def test_a_manifest_makes_a_checkpoint_and_its_version_changes_with_it(
    object_store: ObjectStore,
) -> None:
    object_store.put_manifest(NAME, b"one")
    (first,) = object_store.versions().items()
    assert object_store.versions() == dict([first])
    assert (first[0], object_store.manifest(NAME)) == (NAME, b"one")
    object_store.put_manifest(NAME, b"another")
    object_store.put_manifest("other", b"one")
    assert object_store.manifest(NAME) == b"another"
    assert object_store.versions().keys() == {NAME, "other"}
    assert object_store.versions()[NAME] != first[1]


def test_what_is_deleted_is_gone_and_nothing_else_is(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    digest = put(object_store, tmp_path, b"x")
    put(object_store, tmp_path, b"x", "tiny@prn-1")
    for name in (NAME, "tiny@prn-1"):
        object_store.put_manifest(name, b"manifest")
    object_store.delete(NAME)
    object_store.delete(NAME)
    assert object_store.versions().keys() == {"tiny@prn-1"}
    assert (object_store.sizes(NAME), object_store.sizes("tiny@prn-1")) == ({}, {digest: 1})


def test_objects_are_discarded_one_by_one(object_store: ObjectStore, tmp_path: Path) -> None:
    kept, other = put(object_store, tmp_path, b"kept"), put(object_store, tmp_path, b"other")
    put(object_store, tmp_path, b"other", "tiny@prn-1")
    object_store.put_manifest(NAME, b"manifest")
    object_store.discard(NAME, {other})
    assert object_store.sizes(NAME) == {kept: 4}
    assert (object_store.manifest(NAME), object_store.sizes("tiny@prn-1")) == (
        b"manifest",
        {other: 5},
    )


@pytest.fixture
def refusing(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a server that refuses everything with this status."""

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Refusal) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("refusing", [401, 403], indirect=True)
def test_a_refusal_of_google_is_no_outage(refusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", refusing)
    store = open_store(StoreUrl.parse("gs://bucket/prefix"))
    with pytest.raises(StoreDenied, match="permission denied, cannot list"):
        store.versions()


def test_a_hub_with_xet_gets_large_files_by_it_unless_that_is_turned_off(
    hub_repository: str,
    hub_with_repositories: WritableHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    hub, store = hub_with_repositories, open_store(StoreUrl.parse(f"hf://{hub_repository}"))
    hub.xet_dir = tmp_path / "xet"
    hub.xet_dir.mkdir()
    by_xet, by_lfs = (Random(seed).randbytes(5000) for seed in range(2))
    num_uploads = hub.num_uploads
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
        digest = put(store, tmp_path, by_xet)
    assert hub.num_uploads == num_uploads
    assert b"".join(store.blocks(NAME, digest)) == by_xet
    digest = put(store, tmp_path, by_lfs)
    assert hub.num_uploads == num_uploads + 1
    assert b"".join(store.blocks(NAME, digest)) == by_lfs
    assert "Processing Files" not in capfd.readouterr().err  # a worker's log has no bars


def test_a_hub_without_xet_says_how_to_do_without(
    hub_repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small files need none."""
    store = open_store(StoreUrl.parse(f"hf://{hub_repository}"))
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
        put(store, tmp_path, b"x")
        with pytest.raises(StoreUnavailable, match="set HF_HUB_DISABLE_XET=1"):
            put(store, tmp_path, LARGE)
    put(store, tmp_path, LARGE)
    assert sorted(store.sizes(NAME).values()) == [1, len(LARGE)]
