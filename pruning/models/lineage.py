"""The origin and the licence of a dense model, from the files of its directory."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pruning.models.load_checks import foreign_code
from pruning.models.safetensors_headers import NotAModel
from pruning.models.towers import TOWERS
from pruning.records import fields_of, sendable

ORIGIN_FILE = "sleb-origin.json"
CARD_FILE = "README.md"
_LICENCE = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_NAME = re.compile(r"[\w .,:+()/-]{1,100}")  # without markup


@dataclass(frozen=True)
class Provenance:
    """What a model card or a GGUF file says of its model. None or empty for unknown values."""

    licence: str | None = None  # an identifier of the hub, such as apache-2.0
    licence_name: str | None = None  # of a licence without an identifier
    licence_link: str | None = None
    name: str | None = None
    base_models: tuple[str, ...] = ()  # ORG/NAME on the hub
    languages: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """From JSON of ``asdict``, or the same from elsewhere. Wrong values are left out."""
        return cls(
            licence=next(iter(_texts(fields.get("licence"), _LICENCE)), None),
            licence_name=next(iter(_texts(fields.get("licence_name"), _NAME)), None),
            licence_link=next(iter(_texts(fields.get("licence_link"))), None),
            name=next(iter(_texts(fields.get("name"), _NAME)), None),
            base_models=_texts(fields.get("base_models"), _ON_HUB),
            languages=_texts(fields.get("languages")),
            datasets=_texts(fields.get("datasets")),
        )


@dataclass(frozen=True)
class Lineage:
    """Origin and licence; None for unknown values. ``source`` and ``commit`` are of a model hub.

    ``conversion`` says how the weights differ from those of ``source``.
    """

    source: str | None = None
    commit: str | None = None
    provenance: Provenance = field(default_factory=Provenance)
    has_licence_text: bool = False
    conversion: str | None = None
    tower: str | None = None  # the type of a model whose language tower alone loses blocks


def lineage_of(directory: Path) -> Lineage:
    """Read the file of its origin, the front matter of README.md, and LICENSE."""
    origin = fields_of(directory / ORIGIN_FILE)
    texts = {key: sendable(value) for key, value in origin.items() if isinstance(value, str)}
    source, commit, conversion = map(texts.get, ("source", "commit", "conversion"))
    # a model that was copied from a directory has neither a commit nor a conversion
    is_of_hub = source is not None and _ON_HUB.fullmatch(source) and (commit or conversion)
    said = _card_fields(directory / CARD_FILE)
    return Lineage(
        source=source if is_of_hub else None,
        commit=commit if is_of_hub else None,
        provenance=Provenance.of({**origin, **{key: each for key, each in said.items() if each}}),
        has_licence_text=(directory / "LICENSE").is_file(),
        conversion=conversion,
        tower=_tower(directory),
    )


def added_at(directory: Path) -> float:
    """When the model came here, in seconds since the epoch. Raises ``OSError`` if it is gone."""
    recorded = fields_of(directory / ORIGIN_FILE).get("added_at")
    if isinstance(recorded, int | float) and math.isfinite(recorded) and recorded > 0:
        return recorded
    return (directory / "config.json").stat().st_mtime


def _tower(directory: Path) -> str | None:
    model_type = fields_of(directory / "config.json").get("model_type")
    return model_type if isinstance(model_type, str) and model_type in TOWERS else None


def _card_fields(file: Path) -> dict[str, Any]:
    """What the front matter of a model card says, by the names of ``Provenance``."""
    from huggingface_hub import metadata_load  # noqa: PLC0415 - takes a second

    try:
        with foreign_code(f"{file} cannot be read"):
            card = metadata_load(file) or {} if file.is_file() else {}
    except NotAModel:
        return {}
    return {
        "licence": card.get("license"),
        "licence_name": card.get("license_name"),
        "licence_link": card.get("license_link"),
        "languages": card.get("language"),
        "datasets": card.get("datasets"),
    }


def _texts(value: object, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
    """The texts in one or several values, as far as they match the pattern."""
    values = value if isinstance(value, list | tuple) else [value]
    texts = (sendable(one.strip()) for one in values if isinstance(one, str))
    return tuple(text for text in texts if text and (pattern is None or pattern.fullmatch(text)))
