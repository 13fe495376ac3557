"""One healing at a time in a folder: a lock that the kernel releases when its process dies."""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = ".lock"
_POLL_S = 0.2


class HealingInProgress(RuntimeError):
    """Another process has the lock of the healing."""


@contextmanager
def locked(
    folder: Path, what: str, *, patience_s: float = 0.0, ask: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hold the lock of ``folder``, which is created, and removed in the end if nothing is in it.

    Waits ``patience_s`` for another process, and asks meanwhile whether to go on: ``ask`` may
    raise. Raises ``HealingInProgress``, which names ``what`` is being healed.
    """
    until_s = time.monotonic() + patience_s
    while (lock := _taken(folder)) is None:
        if time.monotonic() >= until_s:
            raise HealingInProgress(
                f"{what} is being healed by another process: wait until it ends, or stop it "
                "(its progress is kept)"
            )
        ask()
        threading.Event().wait(_POLL_S)
    try:
        yield
    finally:
        if folder.is_dir() and {path.name for path in folder.iterdir()} == {LOCK}:
            remove_folder(folder)
        os.close(lock)


def remove_folder(folder: Path) -> None:
    """Remove the files of a healing, the lock last, and the folder above it if it was the last."""
    _refuse_link(folder)
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            if path.name != LOCK:
                path.unlink(missing_ok=True)
        (folder / LOCK).unlink(missing_ok=True)
    for directory in (folder, folder.parent):
        with suppress(OSError):  # gone, or in use again
            directory.rmdir()


def _refuse_link(folder: Path) -> None:
    """Remove a link in the place of the folder: the files where it leads are of another."""
    if folder.is_symlink():
        folder.unlink()


def _taken(folder: Path) -> int | None:
    """The descriptor of the lock; None if another process has it."""
    while True:
        _refuse_link(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its last user has just removed the folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        if os.fstat(lock).st_nlink:
            return lock
        os.close(lock)
