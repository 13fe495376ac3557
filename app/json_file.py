"""Small files of the data directory that several processes read. They are replaced as a whole."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from filelock import FileLock

from pruning.records import read_stored, reason_of, replace_file

logger = logging.getLogger(__name__)

_Content = TypeVar("_Content")


class JsonFile(Generic[_Content]):
    """The JSON file at ``path``, which is read at every request."""

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
            stat = self.path.stat()
            version = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if version != self._version:  # of a file that is replaced now, it is read once more
                self._content, self._version = self._parse(read_stored(self.path)), version
        except FileNotFoundError:
            self._content, self._version = self._empty(), None
        return self._content

    def read_or_empty(self) -> _Content:
        """The content, or that of a missing file if this one cannot be read, with a warning."""
        try:
            return self.read()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s is ignored: %s", self.path, reason_of(error))
            return self._empty()

    def changing(self) -> FileLock:
        """Hold this lock from ``read`` to ``replace``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self.path}.lock", mode=0o600)

    def replace(self, data: object) -> None:
        """Raises ``OSError``, and then the file is as it was."""
        replace_file(self.path, (json.dumps(data, indent=2) + "\n").encode())
