"""The checkpoints of this machine, and those of an object store, as one ``CheckpointStore``.

Manifests of the store are listed from this disk, as of the last time that the store answered: a
store that is slow or away neither delays lists of models nor empties them. Several processes may
refresh one listing.
"""

import hashlib
import json
import logging
import math
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from pruning.checkpoints.store import (
    CheckpointCorrupt,
    CheckpointNotFound,
    CheckpointStore,
    FileEntry,
    is_checkpoint_name,
    parse_manifest,
)
from pruning.config import Settings
from pruning.models.store import LoadedModel
from pruning.records import parse_record, read_record, read_stored, replace_file
from pruning.storage.cache import CheckpointCache, Wanted
from pruning.storage.location import open_store
from pruning.storage.store import ObjectCorrupt, ObjectMissing, ObjectStore, StoreError
from pruning.storage.transfer import receive, received_manifest
from pruning.store_url import StoreUrl

REFRESH_S = 10.0  # what a list of the store's checkpoints may be behind it
_INDEX = ".listing"

logger = logging.getLogger(__name__)


def checkpoints_of(settings: Settings) -> CheckpointStore:
    """The checkpoints that a process with these settings knows."""
    if settings.checkpoint_store is None:
        return CheckpointStore(settings.checkpoints_dir)
    store = open_store(StoreUrl.parse(settings.checkpoint_store))
    cache = CheckpointCache(settings.store_cache_dir, settings.store_cache_bytes)
    return StoredCheckpoints(settings.checkpoints_dir, store, cache)


def current_checkpoints(settings: Settings) -> CheckpointStore:
    """As ``checkpoints_of``, for a command: it lists what is in the store now, if that answers."""
    checkpoints = checkpoints_of(settings)
    try:
        checkpoints.refresh()
    except StoreError as error:
        logger.warning("using the previous list of checkpoints in the store: %s", error)
    return checkpoints


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


class StoredCheckpoints(CheckpointStore):
    """Those below ``root``, and those of ``store``, whose files are kept in ``cache``.

    One that is on this machine is read here. Names and manifests of the others are those of a
    listing, which is refreshed in the background when it is older than ``refresh_s``; so nothing
    waits for the store but who needs its files. Methods that need them also raise ``StoreError``
    and ``NoRoomInCache``.
    """

    def __init__(
        self,
        root: Path,
        store: ObjectStore,
        cache: CheckpointCache,
        *,
        refresh_s: float = REFRESH_S,
    ) -> None:
        super().__init__(root)
        self.store = store
        self._cache = cache
        self._key = hashlib.sha256(store.url.encode()).hexdigest()[:12]
        self.listing = Listing(store, cache.root / f".manifests-{self._key}")
        self._refresh_s = refresh_s
        self._refreshing = threading.Lock()
        self._next_refresh_s = -math.inf

    def names(self) -> list[str]:
        self._refresh_soon()
        return sorted({*super().names(), *self.listing.names()})

    def holds(self, name: str) -> bool:
        self._refresh_soon()
        return super().holds(name) or self.listing.holds(name)

    def content(self, name: str) -> bytes:
        stored = self._stored(name)
        return super().content(name) if stored is None else stored.content

    def is_here(self, name: str) -> bool:
        stored = self._stored(name)
        return super().is_here(name) if stored is None else self._cache.has(stored)

    @contextmanager
    def held(self, name: str, files: Collection[str] | None = None) -> Iterator[Path]:
        stored = self._stored(name, files)
        if stored is None:
            holding = super().held(name, files)
        else:
            holding = self._cache.hold(stored, partial(self._fetch, stored.manifest.name))
        with holding as path:
            yield path

    def open(self, name: str, *, device: str = "auto") -> LoadedModel:
        try:
            return super().open(name, device=device)
        except CheckpointCorrupt:
            # what was fetched has changed on this disk: fetch it once more
            stored = self._stored(name)
            if stored is None or not self._cache.drop(stored.key):
                raise
            return super().open(name, device=device)

    def delete(self, name: str) -> None:
        """Delete it in the store first: what is left after an error can be deleted again."""
        if not is_checkpoint_name(name):
            return
        self.store.delete(name)
        stored = self._stored(name)
        self.listing.forget(name)
        if stored is not None:
            self._cache.drop(stored.key)
        super().delete(name)

    def refresh(self) -> None:
        with self._refreshing:
            self.listing.refresh()

    def refresh_within(self, wait_s: float) -> None:
        until_s = time.monotonic() + wait_s
        if self._refreshing.acquire(timeout=wait_s):
            self._refresh_in_background(0.0).join(max(0.0, until_s - time.monotonic()))

    def _stored(self, name: str, files: Collection[str] | None = None) -> Wanted | None:
        """One that is only in the store, with all of its files or with these."""
        if super().holds(name) or (content := self.listing.content(name)) is None:
            return None
        manifest = parse_manifest(content, f"{self.store.url}: the manifest of {name}")
        if unknown := set(files or ()) - manifest.files.keys():
            raise CheckpointNotFound(f"{name} has no file {min(unknown)[:128]!r}")
        digest = hashlib.sha256(content).hexdigest()[:12]
        chosen = tuple(manifest.files if files is None else files)
        return Wanted(f"{self._key}-{digest}-{name}", manifest, content, chosen)

    def _fetch(self, name: str, entry: FileEntry, target: Path) -> None:
        try:
            receive(self.store, name, entry, target)
        except (ObjectMissing, ObjectCorrupt) as error:
            raise CheckpointCorrupt(str(error)) from error

    def _refresh_soon(self) -> None:
        """Refresh an old listing in the background, one refresh at a time."""
        now_s = time.monotonic()
        if now_s < self._next_refresh_s or not self._refreshing.acquire(blocking=False):
            return
        self._next_refresh_s = now_s + self._refresh_s
        self._refresh_in_background(self._refresh_s)

    def _refresh_in_background(self, min_age_s: float) -> threading.Thread:
        """The lock is held, and released by the thread."""
        thread = threading.Thread(
            target=self._refresh, args=(min_age_s,), name="list checkpoints", daemon=True
        )
        thread.start()
        return thread

    def _refresh(self, min_age_s: float) -> None:
        try:
            if self.listing.age_s >= min_age_s:  # not refreshed by another process
                self.listing.refresh()
        except (StoreError, OSError) as error:
            logger.warning("using the previous list of checkpoints in the store: %s", error)
        except Exception:
            logger.exception("using the previous list of checkpoints in the store")
        finally:
            self._refreshing.release()
