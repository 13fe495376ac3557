"""What a checkpoint replaces in a store stays there until the new one is complete."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from app.models import stored
from app.models.stored import Outgoing
from pruning.checkpoints.publish import publish
from pruning.storage.store import StoreUnavailable
from pruning.storage.transfer import receive, received_manifest
from pruning.store_url import StoreUrl
from tests.support.checkpoints import manifest_of
from tests.support.object_stores import ObservedStore, folder_store

NAME = "tiny@prn-1"
OLD = {"config.json": b"{}", "a.safetensors": b"old weights", "b.safetensors": b"old"}
NEW = {"config.json": b"{}", "a.safetensors": b"new weights"}


def outgoing(root: Path, files: dict[str, bytes], digest: str) -> Outgoing:
    url = StoreUrl.parse(f"file://{root}/store/{NAME}")
    sent = Outgoing(url, root / digest, overwrite=True)

    def write(directory: Path) -> None:
        for file, content in files.items():
            (directory / file).write_bytes(content)

    publish(sent.path, manifest_of(NAME, digest), write)
    return sent


def whole(root: Path) -> dict[str, bytes]:
    """The files of the checkpoint of the store, compared with its manifest."""
    store = folder_store(root / "store")
    manifest, _ = received_manifest(store, NAME)
    for file, entry in manifest.files.items():
        receive(store, NAME, entry, root / "received" / file)
    return {file: (root / "received" / file).read_bytes() for file in manifest.files}


def fails_at(step: int) -> Callable[[str], None]:
    calls = itertools.count(1)

    def call(_method: str) -> None:
        if next(calls) == step:
            raise StoreUnavailable("away")

    return call


def test_a_replacement_that_fails_at_any_call_leaves_one_of_both_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for step in itertools.count(1):
        root = tmp_path / str(step)
        (root / "received").mkdir(parents=True)
        outgoing(root, OLD, "old").send()
        observed = ObservedStore(folder_store(root / "store"), fails_at(step))
        with monkeypatch.context() as patch:
            patch.setattr(stored, "open_store", lambda _url, observed=observed: observed)
            new = outgoing(root, NEW, "new")
        try:
            new.send()
        except StoreUnavailable:
            seen.append(whole(root))
            assert new.kept("new") is not None
            outgoing(root, NEW, "new").send()
        assert whole(root) == NEW
        assert len(folder_store(root / "store").sizes(NAME)) == len(NEW)
        if step > len(observed.order):
            break
    assert (seen[0], seen[-1]) == (OLD, NEW)
    assert observed.order == ["sizes", "put", "manifest", "put_manifest", "sizes", "discard"]
