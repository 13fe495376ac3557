"""The files of a model in a directory of this machine, and who may read them.

Nothing outside of the directory is read, except the blobs of a hub cache that a snapshot links to.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pruning.records import open_stored

_FILE, _DIRECTORY = 0o644, 0o755  # at most: another user may serve the model


class LinkRefused(ValueError):
    """A link leads out of the directory."""


@dataclass(frozen=True)
class Modes:
    """The permissions of an added model, which are never wider than those of its source."""

    directory: int = _DIRECTORY
    files: Mapping[str, int] = field(default_factory=dict)
    others: int = _FILE  # of files that are made of those of the source

    def of(self, name: str) -> int:
        return self.files.get(name, self.others)


def modes_of(file: Path) -> Modes:
    """Those of a model that is made of this file; the widest of one that is not on this machine."""
    return Modes(others=file.stat().st_mode & _FILE) if file.is_file() else Modes()


class LocalModel:
    """The files of a directory. Raises ``LinkRefused`` for a link that leads out of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files = {
            file.name: _real(file, path.resolve()) for file in path.iterdir() if file.is_file()
        }
        stats = {name: file.stat() for name, file in self._files.items()}
        self.sizes = {name: stat.st_size for name, stat in stats.items()}
        modes = {name: stat.st_mode & _FILE for name, stat in stats.items()}
        narrowest = reduce(int.__and__, modes.values(), _FILE)
        self.modes = Modes(path.stat().st_mode & _DIRECTORY, modes, narrowest)

    def fetch(self, names: Sequence[str], directory: Path) -> None:
        with Console(stderr=True).status(f"Copying {escape(str(self._path))}"):
            for name in names:
                self._copy(name, directory / name)

    def _copy(self, name: str, target: Path) -> None:
        with (
            open_stored(self._files[name], is_link_allowed=False) as source,
            os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 2**24)


def _real(file: Path, directory: Path) -> Path:
    """Where the file is. A snapshot of a hub cache has links to blobs of the same model."""
    real = file.resolve()
    model = directory.parent.parent
    is_blob = directory.parent.name == "snapshots" and real.is_relative_to(model / "blobs")
    if real.is_relative_to(directory) or is_blob:
        return real
    raise LinkRefused(
        f"{file} is a link out of the directory, to {real}: replace it by the file, if it belongs "
        "to the model"
    )
