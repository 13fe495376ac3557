"""Publish a checkpoint atomically.

Files are written to a staging folder and synced, the manifest last. One rename publishes them, and
syncing the directory makes that durable. If the process dies, publishing can be repeated.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

from pruning.checkpoints.staging import staged, sweep, sync_directory
from pruning.checkpoints.store import (
    MANIFEST,
    CheckpointCorrupt,
    FileEntry,
    Manifest,
    file_entry,
    read_manifest,
)
from pruning.process import DISK_FULL


class CheckpointExists(FileExistsError):
    """The target exists and is not the same checkpoint."""


class DiskFull(RuntimeError):
    """The disk of the target has no room for the checkpoint."""

    def __init__(self, needed_bytes: int, free_bytes: int) -> None:
        super().__init__(
            f"not enough disk space: the weights alone need {needed_bytes} bytes, but only "
            f"{free_bytes} are free on the target disk, or a quota is lower; free space, "
            "then try again"
        )


def publish(
    target: Path,
    manifest: Manifest,
    write: Callable[[Path], None],
    confirm: Callable[[], object] = lambda: None,
    verify: Callable[[Path], object] = lambda _directory: None,
    *,
    overwrite: bool = False,
) -> Manifest:
    """Publish what ``write(directory)`` writes at ``target``, atomically.

    Calls ``verify(directory)`` once it is complete, and ``confirm()`` right before publishing;
    either may raise to prevent it. An equal published checkpoint is kept. Raises
    ``CheckpointExists`` if ``target`` is anything else, and ``DiskFull``. ``overwrite`` replaces
    whatever is at ``target``, once the new checkpoint is complete.
    """
    sweep(target.parent)
    if not overwrite and (earlier := published(target, manifest.spec_digest)) is not None:
        return earlier
    with _room_for(manifest.disk_bytes, target), staged(target) as staging:
        write(staging)
        manifest = replace(manifest, files=_sync_files(staging))
        with (staging / MANIFEST).open("w", encoding="utf-8") as file:  # behind all others
            file.write(manifest.to_json())
            file.flush()
            os.fsync(file.fileno())
        sync_directory(staging)
        verify(staging)
        confirm()
        if overwrite:
            with _put_aside(target):
                staging.rename(target)
        elif (earlier := _renamed(staging, target, manifest)) is not None:
            return earlier
        sync_directory(target.parent)
        return manifest


def place(
    target: Path, num_bytes: int, write: Callable[[Path], None], *, overwrite: bool = False
) -> None:
    """Place a model without a manifest, of ``num_bytes`` of weights, at ``target`` atomically.

    ``overwrite`` replaces an existing model once the new one is complete. Raises
    ``CheckpointExists`` and ``DiskFull``.
    """
    check_place(target, overwrite=overwrite)
    sweep(target.parent)
    with _room_for(num_bytes, target), staged(target) as staging:
        write(staging)
        _sync_files(staging)
        sync_directory(staging)
        with _put_aside(target):
            staging.rename(target)
            sync_directory(target.parent)


def check_place(target: Path, *, overwrite: bool) -> None:
    """Raises ``CheckpointExists`` if ``place`` would."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise _taken(target)
    if not (target / "config.json").is_file() or (target / MANIFEST).exists():
        raise CheckpointExists(
            f"{target} is not an exported model (it has no config.json, or a {MANIFEST}), "
            "so it is not overwritten: choose another path"
        )


@contextmanager
def _put_aside(target: Path) -> Iterator[None]:
    """Move ``target`` aside: restored on an error, else removed at the end."""
    if not target.exists():
        yield
        return
    aside = target.with_name(f"{target.name}.old-{uuid4().hex}")
    target.rename(aside)
    try:
        yield
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _room_for(num_bytes: int, target: Path) -> Iterator[None]:
    """Raises ``DiskFull`` where there is less room, and for the errors of a full disk."""
    if num_bytes > (free_bytes := free_bytes_at(target.parent)):
        raise DiskFull(num_bytes, free_bytes)
    try:
        yield
    except (OSError, SafetensorError) as error:
        if not _is_of_a_full_disk(error):
            raise
        raise DiskFull(num_bytes, free_bytes_at(target.parent)) from error


def _renamed(staging: Path, target: Path, manifest: Manifest) -> Manifest | None:
    """Publish, unless an equal checkpoint was published meanwhile, whose manifest is returned."""
    try:
        staging.rename(target)
    except OSError as error:
        if (earlier := published(target, manifest.spec_digest)) is not None:
            return earlier
        if not target.exists():
            raise
        raise _taken(target) from error
    return None


def published(target: Path, spec_digest: str) -> Manifest | None:
    """The manifest of the published checkpoint of this digest; None if nothing is at ``target``.

    Raises ``CheckpointExists`` for anything else.
    """
    try:
        manifest = read_manifest(target)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except CheckpointCorrupt as error:
        raise _taken(target) from error
    if manifest.spec_digest != spec_digest:
        raise _taken(target)
    sync_directory(target.parent)  # its publisher may have died before this
    return manifest


def _taken(target: Path) -> CheckpointExists:
    return CheckpointExists(f"{target} already exists: choose another path, or use --overwrite")


def _is_of_a_full_disk(error: OSError | SafetensorError) -> bool:
    """safetensors reports an error of the system only as text."""
    if isinstance(error, OSError):
        return error.errno in DISK_FULL
    return any(f"os error {number}" in str(error) for number in DISK_FULL)


def free_bytes_at(path: Path) -> int:
    """Free bytes on the file system of ``path``, which need not exist."""
    return shutil.disk_usage(next(at for at in (path, *path.parents) if at.is_dir())).free


def _sync_files(directory: Path) -> dict[str, FileEntry]:
    """Make all files durable, and return their entries by their paths in ``directory``."""
    entries = {}
    for path in sorted(directory.rglob("*")):
        if path.is_dir():
            sync_directory(path)
            continue
        path.chmod(0o644)  # safetensors writes for its owner alone, but others serve it
        with path.open("rb") as file:
            os.fsync(file.fileno())
        entries[str(path.relative_to(directory))] = file_entry(path)
    return entries
