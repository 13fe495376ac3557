"""The folder beside published checkpoints for what is not visible yet, or no longer.

A process locks what it writes there. The kernel lets go of the lock when the process dies, however
that happens, and what nobody holds is a leftover, whatever its age. So the file system of the data
directory has to know ``flock``, across machines if several share it.
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
    """A new folder on the file system of ``target``; what is left there at the end is removed."""
    root = target.parent / STAGING
    make_directory(root)
    with ExitStack() as ending:
        is_ours = False
        while not is_ours:
            folder = root / f"{target.name}-{uuid4().hex}"
            lock = ending.enter_context(_lock_of(folder).open("xb"))
            ending.callback(_discard, folder)
            is_ours = _takes(lock.fileno())
        folder.mkdir()
        yield folder


def sweep(directory: Path) -> None:
    """Remove what was begun for ``directory`` by processes that are dead, and nothing else."""
    root = directory / STAGING
    for path in root.glob(f"*{_LOCK}"):
        if not _OURS.fullmatch(path.stem):
            continue
        with suppress(OSError), path.open("r+b") as lock:  # it may be gone, or another user's
            if _takes(lock.fileno()):
                _discard(path.with_name(path.name.removesuffix(_LOCK)))
    for folder in root.glob("*/"):
        # a lock is made before its folder and removed after it
        if _OURS.fullmatch(folder.name) and not _lock_of(folder).exists():
            shutil.rmtree(folder, ignore_errors=True)


def remove(published: Path) -> None:
    """Make a published folder invisible, all of it at once and for good; then free the disk."""
    root = published.parent / STAGING
    make_directory(root)
    hidden = published.rename(root / uuid4().hex)
    sync_directory(published.parent)
    shutil.rmtree(hidden, ignore_errors=True)


def discard_staged(target: Path) -> None:
    """Take away what anybody is writing for ``target``: it can no longer become visible."""
    own = re.compile(re.escape(target.name) + "-[0-9a-f]{32}")
    for folder in (target.parent / STAGING).glob("*/"):
        if own.fullmatch(folder.name):
            with suppress(FileNotFoundError):
                shutil.rmtree(folder.rename(folder.with_name(uuid4().hex)), ignore_errors=True)


def make_directory(path: Path) -> None:
    """With all its parents, and so that they are still there after a power failure."""
    missing = [directory for directory in (path, *path.parents) if not directory.is_dir()]
    for directory in reversed(missing):
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Make the names in it durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _takes(lock: int) -> bool:
    """Whether nobody else holds it, nor has removed it just now: a sweep may have been faster."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(lock).st_nlink > 0


def _discard(folder: Path) -> None:
    """By whoever holds its lock. What does not go now is a leftover."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        _lock_of(folder).unlink()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(folder.name + _LOCK)
