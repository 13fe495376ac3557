"""The files of stored checkpoints on this disk, of bounded size.

Each checkpoint has a folder and two lock files. Users share the first lock, whose time is that of
the last use; a folder is removed only by a process that holds this lock alone. One process holds
the second lock while it downloads, and the others wait. The kernel releases the locks of a process
that dies. The file system must support ``flock``.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from uuid import uuid4

from pruning.checkpoints.store import MANIFEST, FileEntry, Manifest
from pruning.process import DISK_FULL

_LOCK = ".lock"
_FETCH = ".fetch"
_ROOM = ".room"  # held while room is made
_RESERVED = ".reserved"  # the bytes that a folder is going to have
_TRASH = ".trash-"

Fetch = Callable[[FileEntry, Path], None]


class NoRoomInCache(RuntimeError):
    """The files of the checkpoint do not fit beside those that are in use."""


@dataclass(frozen=True)
class Wanted:
    """Files of a checkpoint. ``key`` names its folder, one for each manifest ``content``."""

    key: str
    manifest: Manifest
    content: bytes
    files: Collection[str]


class CheckpointCache:
    """Folders below ``root``, together at most ``max_bytes``, manifests and locks not counted."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self._max_bytes = max_bytes

    def has(self, wanted: Wanted) -> bool:
        folder = self.root / wanted.key
        with suppress(OSError):
            is_current = (folder / MANIFEST).read_bytes() == wanted.content
            return is_current and not _missing(folder, wanted)
        return False

    @contextmanager
    def hold(self, wanted: Wanted, fetch: Fetch) -> Iterator[Path]:
        """The folder with these files, which stay in it meanwhile.

        ``fetch(entry, target)`` writes those that are missing. Waits for another process that is
        fetching them. Raises ``NoRoomInCache``, and what ``fetch`` raises; then what is complete
        stays.
        """
        with self._shared(wanted.key) as lock:
            if not self.has(wanted):
                with (self.root / f"{wanted.key}{_FETCH}").open("ab") as fetching:
                    fcntl.flock(fetching, fcntl.LOCK_EX)
                    if not self.has(wanted):
                        self._fill(wanted, fetch)
            os.utime(lock.fileno())
            yield self.root / wanted.key

    def drop(self, key: str) -> bool:
        """Remove the folder, unless it is in use."""
        if not (self.root / key).is_dir():
            return True
        with self._lock(key) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._remove(key)
        return True

    def used_bytes(self) -> int:
        return sum(self._used_bytes(key) for key in self._keys())

    def _fill(self, wanted: Wanted, fetch: Fetch) -> None:
        """Fetch what is missing."""
        folder = self.root / wanted.key
        with _full_disk_reported(self.root):
            with self._making_room():
                missing = self._prepared(folder, wanted)
                needed = sum(entry.num_bytes for entry in missing.values())
                self._make_room(needed, keep=wanted.key)
                (folder / _RESERVED).write_text(str(_size(folder) + needed))
            try:
                for file, entry in missing.items():
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    fetch(entry, folder / file)
            finally:
                (folder / _RESERVED).unlink(missing_ok=True)

    def _prepared(self, folder: Path, wanted: Wanted) -> dict[str, FileEntry]:
        """Make the folder, without leftovers of a dead process; return what is missing there."""
        folder.mkdir(exist_ok=True)
        (folder / MANIFEST).write_bytes(wanted.content)
        for leftover in (*folder.rglob("*.part"), *folder.glob(_RESERVED)):
            leftover.unlink()
        return _missing(folder, wanted)

    def _make_room(self, needed: int, keep: str) -> None:
        """Remove the folders that were not used for longest. Raises ``NoRoomInCache``."""
        used = self.used_bytes()
        for key in sorted(self._keys(), key=self._last_use):
            if used + needed <= self._max_bytes:
                return
            freed = self._used_bytes(key)
            if key != keep and self.drop(key):
                used -= freed
        if used + needed > self._max_bytes:
            raise NoRoomInCache(
                f"not enough room: the checkpoint needs another {needed} bytes in {self.root}, "
                f"where {used} of {self._max_bytes} bytes are in use; unload a model, or raise "
                "SLEB_STORE_CACHE_BYTES"
            )

    @contextmanager
    def _making_room(self) -> Iterator[None]:
        with (self.root / _ROOM).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for trash in self.root.glob(f"{_TRASH}*"):
                shutil.rmtree(trash, ignore_errors=True)
            yield

    def _lock(self, key: str) -> BufferedRandom:
        self.root.mkdir(parents=True, exist_ok=True)
        return (self.root / f"{key}{_LOCK}").open("a+b")

    def _shared(self, key: str) -> BufferedRandom:
        """The lock of the folder, shared with others that use it."""
        while True:
            lock = self._lock(key)
            fcntl.flock(lock, fcntl.LOCK_SH)
            if os.fstat(lock.fileno()).st_nlink:  # not removed with the folder since
                return lock
            lock.close()

    def _remove(self, key: str) -> None:
        """The lock of the folder is held alone."""
        with suppress(FileNotFoundError):
            trash = (self.root / key).rename(self.root / f"{_TRASH}{uuid4().hex}")
            shutil.rmtree(trash, ignore_errors=True)
        for suffix in (_FETCH, _LOCK):
            (self.root / f"{key}{suffix}").unlink(missing_ok=True)

    def _keys(self) -> list[str]:
        return [path.name for path in self.root.glob("[!.]*/")]

    def _last_use(self, key: str) -> float:
        with suppress(OSError):
            return (self.root / f"{key}{_LOCK}").stat().st_mtime
        return 0.0

    def _used_bytes(self, key: str) -> int:
        """What is there, or is being fetched."""
        folder = self.root / key
        with suppress(OSError, ValueError):
            return max(_size(folder), int((folder / _RESERVED).read_text()))
        return _size(folder)


@contextmanager
def _full_disk_reported(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise NoRoomInCache(
            f"the disk of {root} is full: free disk space, or lower SLEB_STORE_CACHE_BYTES"
        ) from error


def _missing(folder: Path, wanted: Wanted) -> dict[str, FileEntry]:
    """The files that are not in the folder as a whole."""
    entries = ((file, wanted.manifest.files[file]) for file in wanted.files)
    return {file: entry for file, entry in entries if not _has_size(folder / file, entry.num_bytes)}


def _has_size(file: Path, num_bytes: int) -> bool:
    with suppress(OSError):
        return file.stat().st_size == num_bytes
    return False


def _size(folder: Path) -> int:
    """Of its files but the manifest. Others may remove some meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.name not in (MANIFEST, _RESERVED) and path.is_file():
                total += path.stat().st_size
    return total
