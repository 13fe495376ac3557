"""What a dense model's directory says of where it came from and under which licence."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

ORIGIN_FILE = "sleb-origin.json"
_FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
_LICENCE = re.compile(r"^license:[ \t]*([A-Za-z0-9][\w.+-]*)[ \t]*\r?$", re.MULTILINE)


@dataclass(frozen=True)
class Lineage:
    """None for what is not known; ``source`` and ``commit`` are those of a model hub."""

    source: str | None = None
    commit: str | None = None
    licence: str | None = None  # an identifier as hubs have them, such as apache-2.0
    has_licence_text: bool = False


def lineage_of(directory: Path) -> Lineage:
    """From the file that ``sleb models add`` leaves, the head of a model card, and LICENSE."""
    origin = _origin(directory)
    has_licence_text = (directory / "LICENSE").is_file()
    return Lineage(*origin, _licence(directory), has_licence_text)


def _origin(directory: Path) -> tuple[str | None, str | None]:
    """A directory that was copied has no commit, and where it lay concerns nobody else."""
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
