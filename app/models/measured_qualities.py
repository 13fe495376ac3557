"""Perplexities of int8 weights that were measured here, by dense model and variant.

The manifest of a checkpoint has those of plain weights only. Both are of the same windows of text.
They are those of one model: the fingerprint tells whether it was replaced since.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from app.json_file import JsonFile
from pruning.evaluation.quality import DomainQuality, Interval
from pruning.records import InvalidRecord, parse_record

FILE = "qualities.json"
_FORMAT = 2

_ByVariant = Mapping[str, Sequence[DomainQuality]]  # by a name that no later job changes


@dataclass(frozen=True)
class _OfModel:
    """``fingerprint`` is that of the dense weights. Each domain has the variant as its only
    depth.
    """

    fingerprint: str
    variants: _ByVariant = field(default_factory=dict)


class MeasuredQualities:
    """The measurements of one data directory. Without a readable file, there are none."""

    def __init__(self, data_dir: Path) -> None:
        self._file: JsonFile[dict[str, _OfModel]] = JsonFile(data_dir / FILE, _parsed, dict)

    def of(self, model: str, fingerprint: str | None, variant: str) -> Mapping[str, Interval]:
        """The ratios to the dense perplexity, by domain. None are known of another variant."""
        domains = self.of_model(model, fingerprint).get(variant, ())
        return {domain.domain: domain.ratio(domain.raw[0]) for domain in domains}

    def of_model(self, model: str, fingerprint: str | None) -> _ByVariant:
        """Nothing if they were measured on other weights."""
        known = self._file.read_or_empty().get(model)
        return known.variants if known and known.fingerprint == fingerprint else {}

    def record(self, model: str, fingerprint: str, measured: _ByVariant) -> None:
        """Keep what was measured of these variants, unless it is known of more windows, and nothing
        of other weights of this name.

        Raises ``OSError``.
        """
        with self._file.changing():
            known = self.of_model(model, fingerprint)
            better = {
                variant: domains
                for variant, domains in measured.items()
                if _num_windows(domains) >= _num_windows(known.get(variant, ()))
            }
            if better:
                of_model = _OfModel(fingerprint, {**known, **better})
                models = {**self._file.read_or_empty(), model: of_model}
                rows = {name: asdict(each) for name, each in models.items()}
                self._file.replace({"format": _FORMAT, "models": rows})


def _num_windows(domains: Sequence[DomainQuality]) -> int:
    return sum(domain.num_windows for domain in domains)


def _parsed(content: bytes) -> dict[str, _OfModel]:
    data = parse_record(content)
    if data["format"] != _FORMAT:
        raise InvalidRecord(f"format {data['format']!r} is not supported, expected {_FORMAT}")
    return {
        name: _of_model(row["fingerprint"], row["variants"]) for name, row in data["models"].items()
    }


def _of_model(fingerprint: object, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> _OfModel:
    if not isinstance(fingerprint, str):
        raise InvalidRecord("a fingerprint is no string")
    variants = {
        name: tuple(map(DomainQuality.from_dict, domains)) for name, domains in rows.items()
    }
    for domain in (one for domains in variants.values() for one in domains):
        if not domain.has_depths(1):
            raise InvalidRecord(f"the domain {domain.domain!r} has not one variant")
    return _OfModel(fingerprint, variants)
