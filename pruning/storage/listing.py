"""The manifests of a store on this disk, as of the last time that the store answered.

Lists of models read these, so that a store that is slow or away neither delays them nor empties
them. Several processes may refresh one listing.
"""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pruning.checkpoints.store import CheckpointCorrupt, is_checkpoint_name
from pruning.records import parse_record, read_record, read_stored, replace_file
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
        versions = {
            name: at for name, at in self._store.versions().items() if is_checkpoint_name(name)
        }
        known = self._index().versions
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, version in versions.items():
            if known.get(name) != version:
                self._fetch(name)
        for name in self.names():
            if name not in versions:
                self._file(name).unlink(missing_ok=True)
        index = json.dumps(asdict(_Index(time.time(), versions)))
        replace_file(self._folder / _INDEX, index.encode(), 0o666)

    def forget(self, name: str) -> None:
        """The checkpoint has been deleted from the store."""
        self._file(name).unlink(missing_ok=True)

    def _fetch(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)
        with suppress(ObjectMissing):  # deleted since it was listed
            try:
                replace_file(self._file(name), self._checked_content(name), 0o666)
            except CheckpointCorrupt as error:
                logger.warning("a corrupt checkpoint is not served: %s", error)
                reason = json.dumps({"broken": str(error)})
                replace_file(self._file(name), reason.encode(), 0o666)

    def _checked_content(self, name: str) -> bytes:
        """The manifest in the store. Raises ``CheckpointCorrupt``, also if it has another name."""
        manifest, content = received_manifest(self._store, name)
        if manifest.name != name:
            raise CheckpointCorrupt(
                f"{self._store.url}: the manifest of {name} is that of {manifest.name[:128]!r}"
            )
        return content

    def _index(self) -> _Index:
        try:
            return read_record(_Index, parse_record(read_stored(self._folder / _INDEX)))
        except (OSError, ValueError):
            return _Index()

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.json"
