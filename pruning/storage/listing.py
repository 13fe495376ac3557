"""The manifests of a store on this disk, as of the last time that the store answered.

Lists of models read these, so that a store that is slow or away neither delays them nor empties
them. Several processes may refresh one listing.
"""

import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import uuid4

from pruning.checkpoints.store import CheckpointCorrupt, Manifest, is_checkpoint_name
from pruning.records import parse_record, read_record, read_stored
from pruning.storage.store import ObjectMissing, ObjectStore
from pruning.storage.transfer import received_manifest

_INDEX = ".listing"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Index:
    at: float = 0.0  # seconds since the epoch; 0: never
    versions: Mapping[str, str] = field(default_factory=dict)  # of all names, also of bad manifests


class Listing:
    """The manifests of ``store`` in ``folder``."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self._store = store
        self._folder = folder

    @property
    def age_s(self) -> float:
        """Seconds since the store has answered; infinite if it never has."""
        at = self._index().at
        return max(0.0, time.time() - at) if at else float("inf")

    def names(self) -> list[str]:
        try:
            return sorted(path.stem for path in self._folder.glob("[!.]*.json"))
        except OSError:
            return []

    def holds(self, name: str) -> bool:
        return is_checkpoint_name(name) and self._file(name).is_file()

    def content(self, name: str) -> bytes | None:
        """The manifest as stored; None if the store has no such checkpoint."""
        if not is_checkpoint_name(name):
            return None
        with suppress(FileNotFoundError):
            return read_stored(self._file(name))
        return None

    def refresh(self) -> None:
        """Read what is new in the store. Raises ``StoreUnavailable``, ``StoreDenied``, ``OSError``.

        A bad manifest is logged once, and its reason is kept in its place.
        """
        found = {
            name: at for name, at in self._store.versions().items() if is_checkpoint_name(name)
        }
        known = self._index().versions
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, version in found.items():
            if known.get(name) != version:
                self._fetch(name)
        for name in self.names():
            if name not in found:
                self._file(name).unlink(missing_ok=True)
        self._replace(
            self._folder / _INDEX, json.dumps(asdict(_Index(time.time(), found))).encode()
        )

    def forget(self, name: str) -> None:
        """The checkpoint has been deleted from the store."""
        self._file(name).unlink(missing_ok=True)

    def _fetch(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)
        with suppress(ObjectMissing):  # deleted since it was listed
            try:
                self._replace(self._file(name), checked_manifest(self._store, name)[1])
            except CheckpointCorrupt as error:
                logger.warning("a corrupt checkpoint is not served: %s", error)
                self._replace(self._file(name), json.dumps({"broken": str(error)}).encode())

    def _index(self) -> _Index:
        try:
            return read_record(_Index, parse_record(read_stored(self._folder / _INDEX)))
        except (OSError, ValueError):
            return _Index()

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _replace(self, path: Path, content: bytes) -> None:
        staged = path.with_name(f".{uuid4().hex}")
        try:
            with staged.open("xb") as to:
                to.write(content)
                to.flush()
                os.fsync(to.fileno())
            staged.replace(path)
        finally:
            staged.unlink(missing_ok=True)


def checked_manifest(store: ObjectStore, name: str) -> tuple[Manifest, bytes]:
    """As ``received_manifest``; also raises ``CheckpointCorrupt`` for that of another name."""
    manifest, content = received_manifest(store, name)
    if manifest.name != name:
        raise CheckpointCorrupt(
            f"{store.url}: the manifest of {name} is that of {manifest.name[:128]!r}"
        )
    return manifest, content
