"""Perplexities of int8 weights that were measured here, by dense model and variant.

The manifest of a checkpoint has those of plain weights only. Both are of the same windows of text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from app.json_file import JsonFile
from pruning.evaluation.quality import DomainQuality, Interval
from pruning.records import InvalidRecord, parse_record

FILE = "qualities.json"
_FORMAT = 1

_Domains = tuple[DomainQuality, ...]  # each with the variant as its only depth
_ByModel = dict[str, dict[str, _Domains]]  # then by a name that no later job changes


class MeasuredQualities:
    """The measurements of one data directory. Without a readable file, there are none."""

    def __init__(self, data_dir: Path) -> None:
        self._file: JsonFile[_ByModel] = JsonFile(data_dir / FILE, _parsed, dict)

    def of(self, model: str, variant: str) -> Mapping[str, Interval]:
        """The ratios to the dense perplexity, by domain. None are known of another variant."""
        domains = self._file.read_or_empty().get(model, {}).get(variant, ())
        return {domain.domain: domain.ratio(domain.raw[0]) for domain in domains}

    def of_model(self, model: str) -> Mapping[str, Sequence[DomainQuality]]:
        return self._file.read_or_empty().get(model, {})

    def record(self, model: str, measured: Mapping[str, Sequence[DomainQuality]]) -> None:
        """Keep what was measured of these variants. Raises ``OSError``."""
        if not measured:
            return
        with self._file.changing():
            known: dict[str, Mapping[str, Sequence[DomainQuality]]] = {**self._file.read_or_empty()}
            known[model] = {**known.get(model, {}), **measured}
            rows = {
                name: {variant: [*map(asdict, domains)] for variant, domains in variants.items()}
                for name, variants in known.items()
            }
            self._file.replace({"format": _FORMAT, "models": rows})


def _parsed(content: bytes) -> _ByModel:
    by_model = {
        name: {
            variant: tuple(map(DomainQuality.from_dict, domains))
            for variant, domains in variants.items()
        }
        for name, variants in parse_record(content)["models"].items()
    }
    for variants in by_model.values():
        for domain in (one for domains in variants.values() for one in domains):
            if not domain.has_depths(1):
                raise InvalidRecord(f"the domain {domain.domain!r} has not one variant")
    return by_model
