"""Candidates by quality and speed: what is known of each, and which no other one beats.

A value counts by its interval of 95 %: one candidate is better than another only if the intervals
say so. Imports no torch.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pruning.evaluation.quality import Interval
from pruning.evaluation.results import ProbeComparison
from pruning.evaluation.task_shares import TaskShares

_Item = TypeVar("_Item")
DENSE_RATIO = {"every text": Interval(1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class Load:
    """Requests that are served together; ``words`` follow "as fast"."""

    name: str
    words: str


@dataclass(frozen=True)
class Point:
    """A candidate with what is known of it. The dense model is one without a name behind it."""

    name: str
    num_removed: int = 0
    is_int8: bool = False
    is_healed: bool = False
    ratios: Mapping[str, Interval] = field(default_factory=dict)  # of perplexity, by domain
    speeds: Mapping[str, Interval] = field(default_factory=dict)  # dense / this, by load
    checkpoint: str = ""  # in which it is published
    predicted: Collection[str] = ()  # loads whose speed was not measured
    num_blocks: int = 0  # that remain
    parameters: float | None = None  # divided by those of the dense model
    probe: ProbeComparison | None = None
    tasks: TaskShares | None = None

    @property
    def is_dense(self) -> bool:
        return not self.num_removed and not self.is_int8

    @property
    def short_name(self) -> str:
        """The name without that of the model."""
        if not self.num_removed:
            return "int8" if self.is_int8 else "the dense model"
        return f"@{self.name.partition('@')[2]}"

    @property
    def worst(self) -> Interval | None:
        """The ratio of the domain that lost most; None if it is not known."""
        return worst_of(self.ratios)


def worst_of(ratios: Mapping[str, Interval]) -> Interval | None:
    """The highest of several values, whose ends are known if those of all are. None of none."""
    if not ratios:
        return None
    lows, highs = ([getattr(each, end) for each in ratios.values()] for end in ("low", "high"))
    value = max(each.value for each in ratios.values())
    if None in lows or None in highs:
        return Interval(value, None, None)
    return Interval(value, max(lows), max(highs))


def dominates(one: Point, other: Point, loads: Sequence[str]) -> bool:
    """Whether ``one`` is surely nowhere worse, and somewhere surely better.

    Equal intervals are those of one measurement: all variants of a depth are as fast.
    """
    pairs = [(_cost(one), _cost(other)), *((_time(one, of), _time(other, of)) for of in loads)]
    return all(_at_most(*pair) for pair in pairs) and any(_below(*pair) for pair in pairs)


def frontier(points: Sequence[Point], loads: Sequence[str]) -> list[Point]:
    """Those that none of the ``points`` dominates."""
    return [one for one in points if not any(dominates(other, one, loads) for other in points)]


def is_faster(one: Point, other: Point, load: str) -> bool:
    """Whether ``one`` is surely faster there. False if the speed of either is not known."""
    return _below(_time(one, load), _time(other, load))


def _cost(point: Point) -> Interval:
    return point.worst or Interval(math.nan, None, None)


def _time(point: Point, load: str) -> Interval:
    """Of what the dense model does in the time 1."""
    speed = point.speeds.get(load)
    if speed is None:
        return Interval(math.nan, None, None)
    low, high = speed.low, speed.high
    return Interval(_inverse(speed.value), high and _inverse(high), low and _inverse(low))


def _inverse(speed: float) -> float:
    return 1 / speed if speed > 0 else math.inf


def _at_most(one: Interval, other: Interval) -> bool:
    return one == other or (
        one.high is not None and other.low is not None and one.high <= other.low
    )


def _below(one: Interval, other: Interval) -> bool:
    return one.high is not None and other.low is not None and one.high < other.low


def choice(
    items: Sequence[_Item],
    speed: Callable[[_Item], Interval],
    cost: Callable[[_Item], Interval | None],
    plainness: Callable[[_Item], Any],
) -> _Item | None:
    """The fastest. Among those that may be as fast, the one of the best quality; where intervals
    do not tell that apart either, the least ``plainness``. A value without ends counts as it is.
    """
    fastest = max(items, key=lambda item: speed(item).value, default=None)
    if fastest is None:
        return None
    least = _ends(speed(fastest))[0]
    as_fast = [item for item in items if _ends(speed(item))[1] >= least]
    costs = {id(item): _ends(cost(item)) for item in as_fast}
    highest = min(costs[id(item)][1] for item in as_fast)
    as_good = [item for item in as_fast if costs[id(item)][0] <= highest]
    return min(as_good, key=plainness)


def _ends(interval: Interval | None) -> tuple[float, float]:
    if interval is None:
        return math.inf, math.inf
    low = interval.value if interval.low is None else interval.low
    return low, interval.value if interval.high is None else interval.high
