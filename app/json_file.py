"""A small JSON file that several processes read at every request. It is replaced as a whole."""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from filelock import FileLock

_Content = TypeVar("_Content")


class JsonFile(Generic[_Content]):
    """The file at ``path``. Only its owner may read it."""

    def __init__(
        self, path: Path, parse: Callable[[bytes], _Content], empty: Callable[[], _Content]
    ) -> None:
        self.path = path
        self._parse = parse
        self._empty = empty  # what a missing file contains
        self._version: tuple[int, ...] | None = None
        self._content = empty()

    def read(self) -> _Content:
        """The content. The file is read again only after it was replaced.

        Raises ``OSError``, and what ``parse`` raises.
        """
        try:
            with self.path.open("rb") as file:
                found = os.fstat(file.fileno())
                version = (found.st_mtime_ns, found.st_ino, found.st_size)
                if version != self._version:
                    self._content, self._version = self._parse(file.read()), version
        except FileNotFoundError:
            self._content, self._version = self._empty(), None
        return self._content

    def changing(self) -> FileLock:
        """Hold this lock from ``read`` to ``replace``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self.path}.lock", mode=0o600)

    def replace(self, data: object) -> None:
        """Replace the file atomically."""
        text = json.dumps(data, indent=2) + "\n"
        staged = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as to:
                to.write(text)
                to.flush()
                os.fsync(to.fileno())
            staged.replace(self.path)
        finally:
            staged.unlink(missing_ok=True)
