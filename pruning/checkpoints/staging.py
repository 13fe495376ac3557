"""The staging folder, for checkpoints that are not published yet or being removed.

A process locks what it writes there. The kernel releases the lock when the process dies, so an
unlocked folder is a leftover. The file system of the data directory must support ``flock``, across
machines if several share it.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

STAGING = ".staging"
_LOCK = ".lock"
_OURS = re.compile(r"(.+-)?[0-9a-f]{32}")  # a user may keep a folder of that name too


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Create a folder on the file system of ``target``, and remove it at the end if it is left."""
    root = target.parent / STAGING
    with ExitStack() as ending:
        is_ours = False
        while not is_ours:
            make_directory(root)
            folder = root / f"{target.name}-{uuid4().hex}"
            try:
                lock = ending.enter_context(_lock_of(folder).open("xb"))
            except FileNotFoundError:  # see ``remove_empty``
                continue
            ending.callback(_discard, folder)
            is_ours = _takes(lock.fileno())
        folder.mkdir()
        yield folder


@contextmanager
def scratch_for(folder: Path) -> Iterator[Path]:
    """Create a staging folder for files that are needed only until ``folder`` is published."""
    is_staged = folder.parent.name == STAGING
    with staged((folder.parent if is_staged else folder).with_name("scratch")) as scratch:
        yield scratch


def remove_empty(directory: Path) -> None:
    """Remove the staging folder of ``directory`` if nothing is in it, for a place of a user."""
    with suppress(OSError):
        (directory / STAGING).rmdir()


def sweep(directory: Path) -> None:
    """Remove the staging folders of ``directory`` whose processes have died."""
    root = directory / STAGING
    for path in root.glob(f"*{_LOCK}"):
        if not _OURS.fullmatch(path.stem):
            continue
        with suppress(OSError), path.open("r+b") as lock:  # gone, or of another user
            if _takes(lock.fileno()):
                _discard(path.with_name(path.name.removesuffix(_LOCK)))
    for folder in root.glob("*/"):
        # a lock is made before its folder and removed after it
        if _OURS.fullmatch(folder.name) and not _lock_of(folder).exists():
            _remove(folder)


def remove(published: Path) -> None:
    """Unpublish a folder atomically and durably, then delete its files."""
    root = published.parent / STAGING
    make_directory(root)
    hidden = published.rename(root / uuid4().hex)
    sync_directory(published.parent)
    _remove(hidden)


def discard_staged(target: Path) -> None:
    """Remove staging folders for ``target`` even while they are written: none can be published."""
    own = re.compile(re.escape(target.name) + "-[0-9a-f]{32}")
    for folder in (target.parent / STAGING).glob("*/"):
        if own.fullmatch(folder.name):
            with suppress(FileNotFoundError):
                shutil.rmtree(folder.rename(folder.with_name(uuid4().hex)), ignore_errors=True)


def make_directory(path: Path) -> None:
    """Create a directory and its parents durably."""
    missing = [directory for directory in (path, *path.parents) if not directory.is_dir()]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _takes(lock: int) -> bool:
    """Try to lock, and return whether the lock is held and its file was not removed by a sweep."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(lock).st_nlink > 0


def _remove(folder: Path) -> None:
    """Remove what can be removed of a folder, or a link to one."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _discard(folder: Path) -> None:
    """Remove a folder whose lock is held. Files that cannot be removed are left to a sweep."""
    _remove(folder)
    with suppress(OSError):
        _lock_of(folder).unlink()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)
