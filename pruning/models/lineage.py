"""The origin and the licence of a dense model, from the files of its directory."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

ORIGIN_FILE = "sleb-origin.json"
_FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
_LICENCE = re.compile(r"^license:[ \t]*([A-Za-z0-9][\w.+-]*)[ \t]*\r?$", re.MULTILINE)


@dataclass(frozen=True)
class Lineage:
    """Origin and licence; None for unknown values. ``source`` and ``commit`` are of a model hub."""

    source: str | None = None
    commit: str | None = None
    licence: str | None = None  # an identifier of the hub, such as apache-2.0
    has_licence_text: bool = False


def lineage_of(directory: Path) -> Lineage:
    """Read the file that ``sleb models add`` wrote, the front matter of README.md, and LICENSE."""
    origin = _origin(directory)
    has_licence_text = (directory / "LICENSE").is_file()
    return Lineage(*origin, _licence(directory), has_licence_text)


def _origin(directory: Path) -> tuple[str | None, str | None]:
    """Source and commit. A model that was copied from a directory has neither."""
    try:
        origin = json.loads((directory / ORIGIN_FILE).read_text(encoding="utf-8"))
        source, commit = origin["source"], origin["commit"]
    except (OSError, ValueError, TypeError, KeyError):
        return None, None
    is_of_a_hub = isinstance(source, str) and isinstance(commit, str)
    return (source, commit) if is_of_a_hub else (None, None)


def _licence(directory: Path) -> str | None:
    try:
        card = (directory / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    head = _FRONT_MATTER.match(card)
    found = _LICENCE.search(head[1]) if head else None
    return found[1] if found else None
