"""Speed-ups that benchmarks and comparisons have measured here, by dense model and depth.

Which blocks are missing, and how the others are repaired, makes no difference to the speed. So all
variants of a depth share one measurement: that of a benchmark before that of a comparison, and the
one that is known most closely. A ratio that the one before excludes replaces it: the machine or the
software has changed.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from app.json_file import JsonFile
from pruning.checkpoints.store import Manifest
from pruning.evaluation.quality import Interval
from pruning.records import InvalidRecord, check_time, parse_record, read_record, reason_of

logger = logging.getLogger(__name__)

FILE = "speedups.json"
NOT_MEASURED = "not measured"
COMPARISON = "comparison"  # the scenario of what ``POST /compare`` measured
_FORMAT = 1


@dataclass(frozen=True)
class MeasuredSpeedup:
    """Mean time per token, dense over pruned, with the ends of its interval of 95 % confidence."""

    ratio: float
    low: float | None
    high: float | None
    num_blocks: int  # of the dense model
    scenario: str  # of the benchmark, or ``COMPARISON``
    measured_at: float  # seconds since the epoch
    num_pairs: int | None = None  # None in old files

    @property
    def interval(self) -> Interval:
        return Interval(self.ratio, self.low, self.high)

    def __str__(self) -> str:
        ends = "" if self.low is None else f" ({self.low:.2f} to {self.high:.2f})"
        return f"{self.ratio:.2f}{ends}"


_ByDepth = dict[str, dict[str, MeasuredSpeedup]]  # by model, then by number of removed blocks


class MeasuredSpeedups:
    """The measurements of one data directory. Without a readable file, there are none."""

    def __init__(self, data_dir: Path) -> None:
        self._file: JsonFile[_ByDepth] = JsonFile(data_dir / FILE, _parsed, dict)

    def of(self, model: str, num_blocks: int, num_removed: int) -> MeasuredSpeedup | None:
        """None if this depth was not measured, or on a model of another depth."""
        speedup = self._all().get(model, {}).get(str(num_removed))
        return speedup if speedup and speedup.num_blocks == num_blocks else None

    def of_model(self, model: str) -> Mapping[int, MeasuredSpeedup]:
        """By number of removed blocks."""
        return {int(depth): speedup for depth, speedup in self._all().get(model, {}).items()}

    def of_checkpoint(self, manifest: Manifest) -> Interval | None:
        """With all of its removals. None as above."""
        depth = len(manifest.removed_blocks)
        speedup = self.of(manifest.parent, manifest.num_blocks, depth)
        return None if speedup is None else speedup.interval

    def record(self, model: str, measured: Mapping[int, MeasuredSpeedup]) -> None:
        """Keep what was measured at these depths, unless it is known better. Raises ``OSError``."""
        with self._file.changing():
            models = self._all()
            known = models.get(model, {})
            better = {
                str(depth): speedup
                for depth, speedup in measured.items()
                if _replaces(speedup, known.get(str(depth)))
            }
            if better:
                self._write({**models, model: {**known, **better}})

    def _write(self, models: _ByDepth) -> None:
        rows = {
            name: {depth: asdict(speedup) for depth, speedup in depths.items()}
            for name, depths in models.items()
        }
        self._file.replace({"format": _FORMAT, "models": rows})

    def _all(self) -> _ByDepth:
        try:
            return self._file.read()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s is ignored: %s", self._file.path, reason_of(error))
            return {}


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


def _parsed(content: bytes) -> _ByDepth:
    data = parse_record(content)
    by_depth = {
        name: {depth: read_record(MeasuredSpeedup, row) for depth, row in depths.items()}
        for name, depths in data["models"].items()
    }
    for depths in by_depth.values():
        for speedup in depths.values():
            check_time("measured_at", speedup.measured_at)
            if (speedup.low is None) != (speedup.high is None):
                raise InvalidRecord("only one bound of the interval is set")
    return by_depth
