"""The speeds of candidates, in turns against the dense model, with a control.

All start with few runs. More follow for those that may still be taken, until their intervals are
narrow.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from app.bench.plan import AGAIN, DENSE, BenchPlan
from app.bench.runs import Measure, Sample
from app.compare.speedup import Speedup, speedup, turns, widened
from app.frontier.loads import time_of
from app.models.measured_speedups import Measurand, MeasuredSpeedup
from pruning.evaluation.points import Load
from pruning.evaluation.quality import Interval

FIRST_PAIRS = 3  # of every candidate: fewer have no interval worth the name
MOST_PAIRS = 15
CLOSE = 0.03  # relative half width of an interval, from which on no more runs are needed
DENSE_MODEL = Measurand(0)

# Which candidates may still be taken at a load, by what is known of the speeds there
Open = Callable[[Mapping[Measurand, Interval]], Collection[Measurand]]


@dataclass
class Speeds:
    """The runs of each load by side. A side has at most as many as the dense model."""

    plans: Mapping[Load, BenchPlan]
    sides: Mapping[Measurand, str]  # candidates by what is timed of them, without the dense model
    samples: dict[Load, dict[str, list[Sample]]] = field(default_factory=dict)
    is_cut_short: bool = False

    def of(self, load: Load) -> dict[Measurand, Speedup]:
        """Those of which there are at least two pairs."""
        found = {what: self._speedup(load, side) for what, side in self.sides.items()}
        return {what: each for what, each in found.items() if each is not None}

    def intervals(self, load: Load) -> dict[Measurand, Interval]:
        """Those of the candidates, and of the dense model, whose own shows what noise reads."""
        found = {
            what: Interval(each.ratio, each.low, each.high) for what, each in self.of(load).items()
        }
        control = self._speedup(load, AGAIN)
        if control is None or control.low is None or control.high is None:
            return {}
        floor = Interval(1.0, min(1.0, control.low), max(1.0, control.high))
        return {DENSE_MODEL: floor, **found}

    def tokens_per_s(self, load: Load, what: Measurand) -> float | None:
        side = DENSE if what == DENSE_MODEL else self.sides[what]
        samples = self.samples.get(load, {}).get(side)
        return fmean(each.tokens_per_s for each in samples) if samples else None

    def firm(self, load: Load) -> dict[Measurand, MeasuredSpeedup]:
        """What is known closely enough to be kept."""
        control = self._speedup(load, AGAIN)
        return {
            Measurand(what.num_removed, what.is_int8, load.name): kept.record(load.name)
            for what, each in self.of(load).items()
            if (kept := widened(each, control)) is not None
        }

    def _speedup(self, load: Load, side: str) -> Speedup | None:
        name, samples = time_of(self.plans[load]), self.samples.get(load, {})
        dense_s, side_s = (
            [one.times_s[name] for one in samples.get(of, ())] for of in (DENSE, side)
        )
        num_pairs = min(len(dense_s), len(side_s))
        return speedup(dense_s[:num_pairs], side_s[:num_pairs]) if num_pairs > 1 else None


def measure_speeds(
    speeds: Speeds,
    measure: Measure,
    is_open: Open,
    until_s: float,
    observe: Callable[[Load, int], object],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Add runs to ``speeds`` until everything is decided, or the time ``until_s`` is over.

    Calls ``observe(load, pairs)`` before each turn of all sides.
    """
    for pairs in range(MOST_PAIRS):
        for load, plan in speeds.plans.items():
            known = speeds.intervals(load)
            active = [*speeds.sides] if pairs < FIRST_PAIRS else _active(known, is_open)
            if not active:
                continue
            observe(load, pairs)
            sides = [DENSE, AGAIN, *(speeds.sides[what] for what in active)]
            if pairs == 0:
                _warm_up(sides, plan, measure)
            samples = speeds.samples.setdefault(load, {})
            for side in turns(sides, pairs):
                if clock() >= until_s:
                    speeds.is_cut_short = True
                    return
                samples.setdefault(side, []).append(measure(side, plan.scenarios[0], plan))


def _warm_up(sides: Sequence[str], plan: BenchPlan, measure: Measure) -> None:
    for side in sides:
        measure(side, plan.scenarios[0], plan.warm_up)


def _active(known: Mapping[Measurand, Interval], is_open: Open) -> list[Measurand]:
    """Those that may be taken and are not known closely."""
    return [
        what
        for what in is_open(known)
        if what != DENSE_MODEL and what in known and not _is_close(known[what])
    ]


def _is_close(interval: Interval) -> bool:
    return interval.high is not None and interval.high <= (1 + CLOSE) * interval.value
