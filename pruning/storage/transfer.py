"""A checkpoint to a store, its manifest last, and its files back, compared with their digests."""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pruning.checkpoints.store import (
    MANIFEST,
    CheckpointCorrupt,
    FileEntry,
    Manifest,
    file_entry,
    parse_manifest,
    read_manifest,
)
from pruning.storage.store import ObjectCorrupt, ObjectMissing, ObjectStore, ObjectTooLarge


@dataclass(frozen=True)
class Sent:
    """What an upload has sent; all the rest was there."""

    num_files: int
    num_bytes: int


def send(
    store: ObjectStore,
    directory: Path,
    name: str,
    confirm: Callable[[], object] = lambda: None,
) -> Sent:
    """Send a published checkpoint, except for what the store has. Its manifest goes last.

    ``confirm`` is called before every file and before the manifest; an exception from it ends the
    upload. Raises ``FileNotFoundError``, ``CheckpointCorrupt`` for files that differ from the
    manifest, and what the store raises.
    """
    manifest, content = read_manifest(directory), (directory / MANIFEST).read_bytes()
    there = store.sizes(name)
    missing = {
        entry.sha256: directory / file
        for file, entry in manifest.files.items()
        if there.get(entry.sha256) != entry.num_bytes
    }
    num_bytes = 0

    def checked() -> Iterator[tuple[str, Path]]:
        nonlocal num_bytes
        for digest, path in missing.items():
            confirm()
            entry = file_entry(path)
            if entry.sha256 != digest:
                raise CheckpointCorrupt(f"{path} changed after it was published")
            num_bytes += entry.num_bytes
            yield digest, path

    if missing:
        store.put(name, checked())
    confirm()
    if not _has_manifest(store, name, content):
        store.put_manifest(name, content)
    return Sent(len(missing), num_bytes)


def discard_unnamed(store: ObjectStore, directory: Path, name: str) -> None:
    """Delete the objects that the manifest, sent before, does not name: of what it has replaced."""
    named = {entry.sha256 for entry in read_manifest(directory).files.values()}
    if unnamed := store.sizes(name).keys() - named:
        store.discard(name, unnamed)


def _has_manifest(store: ObjectStore, name: str, content: bytes) -> bool:
    try:
        return store.manifest(name) == content
    except (ObjectMissing, ObjectTooLarge):
        return False


def received_manifest(store: ObjectStore, name: str) -> tuple[Manifest, bytes]:
    """The manifest of a checkpoint of the store, and its bytes.

    Raises ``CheckpointCorrupt``.
    """
    try:
        content = store.manifest(name)
    except ObjectTooLarge as error:
        raise CheckpointCorrupt(str(error)) from error
    manifest = parse_manifest(content, f"{store.url}: the manifest of {name}")
    return manifest, content


def receive(store: ObjectStore, name: str, entry: FileEntry, target: Path) -> None:
    """Write an object to ``target``, which appears once its digest is checked.

    Raises ``ObjectCorrupt``, ``OSError`` of this disk, and what the store raises.
    """
    part = target.with_name(f"{target.name}.part")
    digest, num_bytes = hashlib.sha256(), 0
    try:
        with part.open("wb") as to:
            for block in store.blocks(name, entry.sha256):
                num_bytes += len(block)
                digest.update(block)
                to.write(block)
                if num_bytes > entry.num_bytes:
                    break
            to.flush()
            os.fsync(to.fileno())
        if num_bytes != entry.num_bytes or digest.hexdigest() != entry.sha256:
            raise ObjectCorrupt(
                f"{store.url}: {target.name} of {name} does not match its manifest: delete the "
                "checkpoint there, and upload it again"
            )
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
