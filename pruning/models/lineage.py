"""The origin and the licence of a dense model, from the files of its directory."""

import re
from dataclasses import dataclass
from pathlib import Path

from pruning.models.towers import TOWERS
from pruning.records import fields_of, sendable

ORIGIN_FILE = "sleb-origin.json"
_FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---", re.DOTALL)
_LICENCE = re.compile(r"^license:[ \t]*([A-Za-z0-9][\w.+-]*)[ \t]*\r?$", re.MULTILINE)


@dataclass(frozen=True)
class Lineage:
    """Origin and licence; None for unknown values. ``source`` and ``commit`` are of a model hub.

    ``conversion`` says how the weights differ from those of ``source``.
    """

    source: str | None = None
    commit: str | None = None
    licence: str | None = None  # an identifier of the hub, such as apache-2.0
    has_licence_text: bool = False
    conversion: str | None = None
    tower: str | None = None  # the type of a model whose language tower alone loses blocks


def lineage_of(directory: Path) -> Lineage:
    """Read the file of its origin, the front matter of README.md, and LICENSE."""
    origin = _origin(directory)
    of_hub = {name: origin[name] for name in ("source", "commit", "conversion") if name in origin}
    # a model that was copied from a directory has neither a commit nor a conversion
    is_of_a_hub = "source" in of_hub and len(of_hub) > 1
    return Lineage(
        licence=_licence(directory) or origin.get("licence"),
        has_licence_text=(directory / "LICENSE").is_file(),
        tower=_tower(directory),
        **(of_hub if is_of_a_hub else {}),
    )


def _tower(directory: Path) -> str | None:
    model_type = fields_of(directory / "config.json").get("model_type")
    return model_type if isinstance(model_type, str) and model_type in TOWERS else None


def _origin(directory: Path) -> dict[str, str]:
    """The texts in the file that ``sleb models add`` or the demo wrote."""
    origin = fields_of(directory / ORIGIN_FILE)
    return {name: sendable(value) for name, value in origin.items() if isinstance(value, str)}


def _licence(directory: Path) -> str | None:
    try:
        card = (directory / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    head = _FRONT_MATTER.match(card)
    match = _LICENCE.search(head[1]) if head else None
    return match[1] if match else None
