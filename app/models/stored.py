"""Models at the URLs of object stores: what commands read from there, and what they send.

The URL is that of a folder with a model, or STORE/NAME for a checkpoint of a store of checkpoints.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pruning.checkpoints.publish import CheckpointExists, published
from pruning.checkpoints.store import CheckpointNotFound, Manifest, is_checkpoint_name
from pruning.plural import counted
from pruning.storage.folder import StoredFolder
from pruning.storage.location import open_store
from pruning.storage.store import ObjectMissing, ObjectStore, StoreError, StoreUnavailable
from pruning.storage.transfer import discard_unnamed, receive, received_manifest, send
from pruning.store_url import InvalidStoreUrl, StoreUrl


class StoredCheckpointFiles:
    """The files of a checkpoint of a store, which are compared with its manifest."""

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store = store
        self._name = name
        self._entries = received_manifest(store, name)[0].files

    @property
    def sizes(self) -> Mapping[str, int]:
        return {file: entry.num_bytes for file, entry in self._entries.items()}

    def fetch(self, names: Sequence[str], directory: Path) -> None:
        for name in names:
            receive(self._store, self._name, self._entries[name], directory / name)


def stored_files(url: StoreUrl) -> StoredCheckpointFiles | StoredFolder:
    """Raises ``StoreError``, or ``CheckpointCorrupt``."""
    try:
        store = open_store(url.parent)
        return StoredCheckpointFiles(store, url.name)
    except (ObjectMissing, InvalidStoreUrl):  # no such checkpoint, or no folder above
        return StoredFolder(url)


class Outgoing:
    """A checkpoint on its way to a store. It stays on this disk until it is there."""

    def __init__(self, url: StoreUrl, data_dir: Path, *, overwrite: bool) -> None:
        """Raises ``InvalidStoreUrl`` or ``StoreExtraMissing``."""
        self._url = url
        self._store = open_store(url.parent)
        self._overwrite = overwrite
        digest = hashlib.sha256(str(url).encode()).hexdigest()[:12]
        self.path = data_dir / "outgoing" / digest / url.name

    def check(self) -> None:
        """Raises ``CheckpointExists`` or ``CheckpointNotFound``, and what the store raises."""
        if not is_checkpoint_name(self._url.name):
            raise CheckpointNotFound(f"invalid checkpoint name {self._url.name[:128]!r}")
        if self._url.name in self._store.versions() and not self._overwrite:
            raise CheckpointExists(
                f"{self._url} already exists: choose another --out, or use --overwrite"
            )

    def kept(self, spec_digest: str) -> Manifest | None:
        """What an earlier command has published here, and could not send."""
        try:
            return published(self.path, spec_digest)
        except CheckpointExists:
            return None

    def send(self) -> str:
        """Send it, and remove it here. Returns a sentence about that. Raises ``StoreError``.

        A checkpoint that it replaces is there until the new one is complete.
        """
        try:
            sent = send(self._store, self.path, self._url.name)
            discard_unnamed(self._store, self.path, self._url.name)
        except StoreError as error:
            raise StoreUnavailable(
                f"{error}; the checkpoint is kept in {self.path}: run the same command again to "
                "upload it"
            ) from error
        shutil.rmtree(self.path.parent)
        return f"uploaded to {self._url}: {counted(sent.num_files, 'file')}, {sent.num_bytes} bytes"
