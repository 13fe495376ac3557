"""What was read from the configs of models, in a file beside them.

transformers reads a config, and takes seconds to import. With this record, a list of models does
not wait for it. An entry counts as long as the files of its model, and the versions, are the same.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pruning.records import parse_record, read_stored, replace_file

FILE = ".inspected.json"
_PACKAGES = ("sleb-serve", "transformers")  # they decide what can be used, and what is the default

Stamp = tuple[tuple[str, int, int], ...]  # name, bytes and modification time in ns of files


class InspectionRecord:
    """The record of the models under ``root``. It may be missing, and is then made again."""

    def __init__(self, root: Path) -> None:
        self._file = root / FILE

    def read(self, name: str, stamp: Stamp) -> dict[str, Any] | None:
        """The fields of this model; None if they are unknown, or of other files."""
        try:
            entry = self._entries()[name]
            is_known = entry["stamp"] == json.loads(json.dumps(stamp))
            return dict(entry["fields"]) if is_known else None
        except (KeyError, TypeError, ValueError):  # unknown, or not written here
            return None

    def write(self, name: str, stamp: Stamp, fields: Mapping[str, Any]) -> None:
        """Replace the file atomically, unless the directory is read-only."""
        entries = {**self._entries(), name: {"stamp": stamp, "fields": fields}}
        present = {key: entry for key, entry in entries.items() if self._is_here(key)}
        content = json.dumps({"versions": package_versions(), "models": present})
        with suppress(OSError):
            replace_file(self._file, content.encode(), 0o666)

    def _is_here(self, name: str) -> bool:
        return (self._file.parent / name / "config.json").is_file()

    def _entries(self) -> dict[str, dict[str, Any]]:
        try:
            content = parse_record(read_stored(self._file))
            is_valid = content["versions"] == package_versions()
            entries: dict[str, dict[str, Any]] = dict(content["models"]) if is_valid else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return {name: entry for name, entry in entries.items() if isinstance(entry, dict)}


@cache
def package_versions() -> list[str]:
    return [version(name) for name in _PACKAGES]
