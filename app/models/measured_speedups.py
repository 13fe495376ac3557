"""Speed-ups that benchmarks and comparisons have measured here, by dense model and depth.

Which blocks are missing, and how the others are repaired, makes no difference to the speed. So all
variants of a depth share one measurement: the latest benchmark, or else the latest comparison of
those with the most pairs. Which one counts never depends on what was measured.
"""

import logging
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
        """Replace what was measured before at these depths. Raises ``OSError``."""
        with self._file.changing():
            self._replace(model, {str(depth): speedup for depth, speedup in measured.items()})

    def record_compared(self, model: str, measured: Mapping[int, MeasuredSpeedup]) -> None:
        """The same for comparisons: a benchmark stays, and so do more pairs. Raises ``OSError``."""
        with self._file.changing():
            known = self._all().get(model, {})
            kept = {
                str(depth): speedup
                for depth, speedup in measured.items()
                if _gives_way(known.get(str(depth)), speedup)
            }
            if kept:
                self._replace(model, kept)

    def _replace(self, model: str, measured: Mapping[str, MeasuredSpeedup]) -> None:
        known = self._all()
        changed = {**known, model: {**known.get(model, {}), **measured}}
        models = {
            name: {depth: asdict(speedup) for depth, speedup in depths.items()}
            for name, depths in changed.items()
        }
        self._file.replace({"format": _FORMAT, "models": models})

    def _all(self) -> _ByDepth:
        try:
            return self._file.read()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s is not used: %s", self._file.path, reason_of(error))
            return {}


def _gives_way(known: MeasuredSpeedup | None, speedup: MeasuredSpeedup) -> bool:
    if known is None or known.num_blocks != speedup.num_blocks:
        return True
    return known.scenario == COMPARISON and (known.num_pairs or 0) <= (speedup.num_pairs or 0)


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
                raise InvalidRecord("an interval has one end")
    return by_depth
