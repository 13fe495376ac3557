"""Speed-ups that were measured here, by dense model, depth, weights and load.

Which blocks are missing, and how the others are repaired, makes no difference to the speed. So all
variants of a depth with the same weights share one measurement: that of a benchmark before that of
a comparison, and the one that is known most closely. A ratio that the one before excludes replaces
it: the machine or the software has changed.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from app.json_file import JsonFile
from pruning.checkpoints.store import Manifest
from pruning.evaluation.quality import Interval
from pruning.records import InvalidRecord, check_time, parse_record, read_record

FILE = "speedups.json"
NOT_MEASURED = "not measured"
COMPARISON = "comparison"  # the scenario of what ``POST /compare`` measured
ONE_STREAM = "stream"  # the load of a single sequence
_FORMAT = 1
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
    num_blocks: int  # of the dense model
    scenario: str  # of the benchmark, ``COMPARISON``, or the load
    measured_at: float  # seconds since the epoch
    num_pairs: int | None = None  # None in old files

    @property
    def interval(self) -> Interval:
        return Interval(self.ratio, self.low, self.high)

    def __str__(self) -> str:
        ends = "" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{self.ratio:.2f}{ends}"


_ByModel = dict[str, dict[Measurand, MeasuredSpeedup]]


class MeasuredSpeedups:
    """The measurements of one data directory. Without a readable file, there are none."""

    def __init__(self, data_dir: Path) -> None:
        self._file: JsonFile[_ByModel] = JsonFile(data_dir / FILE, _parsed, dict)

    def of(
        self, model: str, num_blocks: int, num_removed: int, *, is_int8: bool = False
    ) -> MeasuredSpeedup | None:
        """That of one stream if it was measured, else that of a benchmark or a comparison.

        None if this depth was not measured with such weights, or on a model of another depth.
        """
        for load in (ONE_STREAM, ""):
            found = self.at(model, num_blocks, Measurand(num_removed, is_int8, load))
            if found is not None:
                return found
        return None

    def at(self, model: str, num_blocks: int, what: Measurand) -> MeasuredSpeedup | None:
        """None if it was not measured, or on a model of another depth."""
        speedup = self._file.read_or_empty().get(model, {}).get(what)
        return speedup if speedup and speedup.num_blocks == num_blocks else None

    def of_model(self, model: str) -> Mapping[Measurand, MeasuredSpeedup]:
        return self._file.read_or_empty().get(model, {})

    def of_checkpoint(self, manifest: Manifest) -> Interval | None:
        """With all of its removals. None as above."""
        depth = len(manifest.removed_blocks)
        speedup = self.of(manifest.parent, manifest.num_blocks, depth)
        return None if speedup is None else speedup.interval

    def record(self, model: str, measured: Mapping[Measurand, MeasuredSpeedup]) -> None:
        """Keep what was measured, unless it is known better. Raises ``OSError``."""
        with self._file.changing():
            models = self._file.read_or_empty()
            known = models.get(model, {})
            better = {
                what: speedup
                for what, speedup in measured.items()
                if _replaces(speedup, known.get(what))
            }
            if better:
                self._write({**models, model: {**known, **better}})

    def _write(self, models: _ByModel) -> None:
        rows = {
            name: {str(what): asdict(speedup) for what, speedup in of_model.items()}
            for name, of_model in models.items()
        }
        self._file.replace({"format": _FORMAT, "models": rows})


def _replaces(new: MeasuredSpeedup, known: MeasuredSpeedup | None) -> bool:
    if known is None or known.num_blocks != new.num_blocks:
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


def _parsed(content: bytes) -> _ByModel:
    data = parse_record(content)
    by_model = {
        name: {Measurand.parse(key): read_record(MeasuredSpeedup, row) for key, row in rows.items()}
        for name, rows in data["models"].items()
    }
    for of_model in by_model.values():
        for speedup in of_model.values():
            check_time("measured_at", speedup.measured_at)
            if (speedup.low is None) != (speedup.high is None):
                raise InvalidRecord("only one bound of the interval is set")
    return by_model
