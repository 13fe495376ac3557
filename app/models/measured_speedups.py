"""Speed-ups that were measured here, by dense model, depth, weights and load.

They are those of one model: the fingerprint tells whether it was replaced since.

Which blocks are missing, and how the others are repaired, makes no difference to the speed. So all
variants of a depth with the same weights share one measurement: that of a benchmark before that of
a comparison, and the one that is known most closely. A ratio that the one before excludes replaces
it: the machine or the software has changed.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from app.json_file import JsonFile
from app.models.dense import DenseModels
from pruning.checkpoints.store import Manifest
from pruning.evaluation.quality import Interval
from pruning.models.store import ModelStore
from pruning.records import InvalidRecord, check_time, parse_record, read_record

FILE = "speedups.json"
NOT_MEASURED = "not measured"
COMPARISON = "comparison"  # the scenario of what ``POST /compare`` measured
ONE_STREAM = "stream"  # the load of a single sequence
_FORMAT = 2
_KEY = re.compile(r"(?P<depth>[0-9]{1,4})(?P<int8>\+int8)?(?: (?P<load>.+))?")


@dataclass(frozen=True)
class Measurand:
    """What a speed-up was measured of. ``str`` is its key in the file."""

    num_removed: int
    is_int8: bool = False
    load: str = ""  # of `sleb frontier`; empty for that of a benchmark or a comparison

    @classmethod
    def parse(cls, key: str) -> Self:
        """Raises ``InvalidRecord``."""
        match = _KEY.fullmatch(key)
        if match is None:
            raise InvalidRecord(f"{key!r} is no depth")
        return cls(int(match["depth"]), match["int8"] is not None, match["load"] or "")

    def __str__(self) -> str:
        load = self.load and f" {self.load}"
        return f"{self.num_removed}{'+int8' if self.is_int8 else ''}{load}"


@dataclass(frozen=True)
class MeasuredSpeedup:
    """Mean time per token, dense over pruned, with the ends of its interval of 95 % confidence."""

    ratio: float
    low: float | None
    high: float | None
    scenario: str  # of the benchmark, ``COMPARISON``, or the load
    measured_at: float  # seconds since the epoch
    num_pairs: int | None = None  # None in old files

    @property
    def interval(self) -> Interval:
        return Interval(self.ratio, self.low, self.high)

    def __str__(self) -> str:
        ends = "" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{self.ratio:.2f}{ends}"


_Speedups = Mapping[Measurand, MeasuredSpeedup]


@dataclass(frozen=True)
class _OfModel:
    """``fingerprint`` is that of the dense weights, and empty if they are not here."""

    fingerprint: str
    speedups: _Speedups = field(default_factory=dict)


class MeasuredSpeedups:
    """The measurements of one data directory. Without a readable file, there are none."""

    def __init__(self, data_dir: Path) -> None:
        self._file: JsonFile[dict[str, _OfModel]] = JsonFile(data_dir / FILE, _parsed, dict)
        self._dense_models = DenseModels(ModelStore(data_dir / "models"))

    def of(
        self,
        model: str,
        num_removed: int,
        *,
        is_int8: bool = False,
        fingerprint: str | None = None,
    ) -> MeasuredSpeedup | None:
        """That of one stream if it was measured, else that of a benchmark or a comparison.

        None if this depth was not measured with such weights. ``fingerprint`` as in ``of_model``.
        """
        return main_of(self.by_load(model, Measurand(num_removed, is_int8), fingerprint))

    def by_load(
        self, model: str, what: Measurand, fingerprint: str | None = None
    ) -> Mapping[str, MeasuredSpeedup]:
        """All of this depth with such weights. That of a benchmark has an empty name."""
        return {
            key.load: speedup
            for key, speedup in self.of_model(model, fingerprint).items()
            if replace(key, load="") == what
        }

    def of_model(self, model: str, fingerprint: str | None = None) -> _Speedups:
        """Nothing if they were measured on other weights than those of the ``fingerprint``: by
        default that of the model as it is here.
        """
        known = self._file.read_or_empty().get(model)
        weights = self._fingerprint(model) if fingerprint is None else fingerprint
        return known.speedups if known is not None and known.fingerprint == weights else {}

    def of_checkpoint(self, manifest: Manifest) -> Interval | None:
        """With all of its removals. None as above."""
        depth, weights = len(manifest.removed_blocks), manifest.parent_fingerprint
        speedup = self.of(manifest.parent, depth, fingerprint=weights)
        return None if speedup is None else speedup.interval

    def record(self, model: str, measured: _Speedups) -> None:
        """Keep what was measured, unless it is known better, and nothing of other weights.

        Raises ``OSError``.
        """
        with self._file.changing():
            weights = self._fingerprint(model)
            known = self.of_model(model, weights)
            better = {
                what: speedup
                for what, speedup in measured.items()
                if _replaces(speedup, known.get(what))
            }
            if better:
                of_model = _OfModel(weights, {**known, **better})
                self._write({**self._file.read_or_empty(), model: of_model})

    def _fingerprint(self, model: str) -> str:
        return self._dense_models.fingerprint(model) or ""

    def _write(self, models: Mapping[str, _OfModel]) -> None:
        rows = {
            name: {
                "fingerprint": of_model.fingerprint,
                "speedups": {str(what): asdict(each) for what, each in of_model.speedups.items()},
            }
            for name, of_model in models.items()
        }
        self._file.replace({"format": _FORMAT, "models": rows})


def main_of(by_load: Mapping[str, MeasuredSpeedup]) -> MeasuredSpeedup | None:
    """That of one stream if it was measured, else that of a benchmark or a comparison."""
    return by_load.get(ONE_STREAM) or by_load.get("")


def _replaces(new: MeasuredSpeedup, known: MeasuredSpeedup | None) -> bool:
    if known is None:
        return True
    if (new.scenario == COMPARISON) != (known.scenario == COMPARISON):
        return known.scenario == COMPARISON
    (low, high), (known_low, known_high) = _ends(new), _ends(known)
    return high - low <= known_high - known_low or high < known_low or low > known_high


def _ends(speedup: MeasuredSpeedup) -> tuple[float, float]:
    """Of the interval; without one, anything may be true."""
    if speedup.low is None or speedup.high is None:
        return 0.0, math.inf
    return speedup.low, speedup.high


def _parsed(content: bytes) -> dict[str, _OfModel]:
    data = parse_record(content)
    if data["format"] != _FORMAT:
        raise InvalidRecord(f"format {data['format']!r} is not supported, expected {_FORMAT}")
    return {
        name: _of_model(row["fingerprint"], row["speedups"]) for name, row in data["models"].items()
    }


def _of_model(fingerprint: object, rows: Mapping[str, Mapping[str, Any]]) -> _OfModel:
    if not isinstance(fingerprint, str):
        raise InvalidRecord("a fingerprint is no string")
    speedups = {
        Measurand.parse(key): read_record(MeasuredSpeedup, row) for key, row in rows.items()
    }
    for speedup in speedups.values():
        check_time("measured_at", speedup.measured_at)
        if (speedup.low is None) != (speedup.high is None):
            raise InvalidRecord("only one bound of the interval is set")
    return _OfModel(fingerprint, speedups)
