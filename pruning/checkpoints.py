"""Published checkpoints: plain Hugging Face directories with a manifest, whole or not there at all.

Files are written beside the target and synced, the manifest comes last, one rename makes them
visible. What has no manifest, or does not match it, is not a checkpoint.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from pruning.models import LoadedModel, load
from pruning.sleb import Blocks

MANIFEST = "manifest.json"
STAGING = ".staging"
FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,254}")


class CheckpointNotFound(LookupError):
    """No published checkpoint of this name."""


class CheckpointExists(FileExistsError):
    """The target is taken by something that is not the same checkpoint."""


class CheckpointCorrupt(ValueError):
    """Files and manifest disagree."""


@dataclass(frozen=True)
class FileEntry:
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class Quality:
    """What the removals cost, for 0, 1, 2 ... blocks removed; losses in nats per token."""

    losses: tuple[float, ...]  # on the calibration windows, dense first
    perplexities: tuple[float, ...] = ()  # on held-out windows, dense first; empty: not evaluated
    evaluated_on: str = ""  # text, windows and window length behind the perplexities


@dataclass(frozen=True)
class Manifest:
    """Identity and lineage of a checkpoint; ``removed_blocks`` are in the order they went."""

    name: str
    parent: str
    num_blocks: int  # of the dense parent
    removed_blocks: tuple[int, ...]
    num_parameters: int
    dense_num_parameters: int
    quality: Quality
    dtype: str
    calibration: Mapping[str, Any]
    spec: Mapping[str, Any]
    spec_digest: str
    versions: Mapping[str, str]
    created_at: float  # seconds since the epoch
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def keep(self) -> Blocks:
        return self.keep_after(len(self.removed_blocks))

    def keep_after(self, num_removed: int) -> Blocks:
        """The blocks alive after the first ``num_removed`` removals."""
        gone = set(self.removed_blocks[:num_removed])
        return tuple(block for block in range(self.num_blocks) if block not in gone)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        data = json.loads(text)
        quality = data["quality"]
        data["quality"] = Quality(
            losses=tuple(quality["losses"]),
            perplexities=tuple(quality["perplexities"]),
            evaluated_on=quality["evaluated_on"],
        )
        data["removed_blocks"] = tuple(data["removed_blocks"])
        data["files"] = {name: FileEntry(**entry) for name, entry in data["files"].items()}
        return cls(**data)


class CheckpointStore:
    """All checkpoints published under one directory, named by their directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, name: str) -> Path:
        """Where a checkpoint of this name lies or will lie; the name may not leave the store."""
        if not _NAME.fullmatch(name):
            raise CheckpointNotFound(f"no checkpoint can be named {name[:128]!r}")
        return self._root / name

    def names(self) -> list[str]:
        return sorted(path.parent.name for path in self._root.glob(f"[!.]*/{MANIFEST}"))

    def holds(self, name: str) -> bool:
        return bool(_NAME.fullmatch(name)) and (self._root / name / MANIFEST).is_file()

    def manifest(self, name: str) -> Manifest:
        try:
            return read_manifest(self.path(name))
        except FileNotFoundError as error:
            known = ", ".join(self.names()) or "none yet"
            raise CheckpointNotFound(
                f"no checkpoint named {name[:128]!r}; the known ones are: {known}"
            ) from error

    def open(self, name: str, *, device: str = "auto") -> LoadedModel:
        """Verified against its manifest, byte for byte and key for key."""
        self.manifest(name)
        return open_checkpoint(self.path(name), device=device)


def read_manifest(path: Path) -> Manifest:
    """Raises ``FileNotFoundError`` or ``CheckpointCorrupt``."""
    text = (path / MANIFEST).read_text(encoding="utf-8")
    try:
        return Manifest.from_json(text)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointCorrupt(f"{path / MANIFEST} is not a manifest: {error}") from error


def open_checkpoint(path: Path, *, device: str = "auto") -> LoadedModel:
    """Load a published checkpoint.

    Raises ``CheckpointCorrupt`` if any file is missing, surplus weights lie beside it or a
    digest differs, ``NotAModel`` if keys and config disagree.
    """
    manifest = read_manifest(path)
    weights = {file.name for file in path.glob("*.safetensors")}
    if surplus := weights - manifest.files.keys():
        raise CheckpointCorrupt(f"{path}: {sorted(surplus)} are not in the manifest")
    for name, entry in manifest.files.items():
        if not (path / name).is_file():
            raise CheckpointCorrupt(f"{path}: {name} is missing; publish the checkpoint again")
        if _entry(path / name) != entry:
            raise CheckpointCorrupt(f"{path}: {name} has changed since it was published")
    return load(path, device=device)


def publish(target: Path, manifest: Manifest, write: Callable[[Path], None]) -> Manifest:
    """Make what ``write(directory)`` writes visible at ``target``, all of it or nothing.

    Publishing the same thing twice keeps the first. Raises ``CheckpointExists`` if ``target`` is
    something else.
    """
    staging = target.parent / STAGING / f"{target.name}-{uuid4().hex}"
    staging.mkdir(parents=True)
    try:
        write(staging)
        manifest = replace(manifest, files=_sync_files(staging))
        with (staging / MANIFEST).open("w", encoding="utf-8") as file:
            file.write(manifest.to_json())
            file.flush()
            os.fsync(file.fileno())
        _sync_directory(staging)
        return _reveal(staging, target, manifest)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _reveal(staging: Path, target: Path, manifest: Manifest) -> Manifest:
    try:
        staging.rename(target)
    except OSError as error:
        if not target.exists():
            raise
        published = read_manifest(target) if (target / MANIFEST).is_file() else None
        if published is None or published.spec_digest != manifest.spec_digest:
            raise CheckpointExists(f"{target} exists already: choose another place") from error
        return published
    _sync_directory(target.parent)
    return manifest


def _sync_files(directory: Path) -> dict[str, FileEntry]:
    entries = {}
    for path in sorted(directory.iterdir()):
        path.chmod(0o644)  # safetensors writes for its owner alone, but others serve it
        with path.open("rb") as file:
            os.fsync(file.fileno())
        entries[path.name] = _entry(path)
    return entries


def _entry(path: Path) -> FileEntry:
    with path.open("rb") as file:
        return FileEntry(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
