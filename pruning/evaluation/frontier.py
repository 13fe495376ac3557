"""The frontier of quality and speed: the candidates that no other one beats, and which to take.

A value counts by its interval of 95 %: one candidate is better than another only if the intervals
say so. Imports no torch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

from pruning.evaluation.quality import Interval
from pruning.evaluation.verdict import Verdict

HEALED_SHARE = 0.8  # of the lost nats, which no healing of these releases has given back
_VAGUE_SPEED = "its speed is not known closely enough"
_VAGUE_QUALITY = "its perplexity is not known closely enough"
_DECISIVE = 1.05  # a median gain of less changes no choice

_Item = TypeVar("_Item")


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


@dataclass(frozen=True)
class NextStep:
    """What to do with the verdict, or what could change it."""

    words: str
    command: str


@dataclass(frozen=True)
class FrontierVerdict:
    """``taken`` has the name of the candidate to take at each load that was measured."""

    sentence: str
    taken: Mapping[str, str]
    frontier: tuple[str, ...]  # of those that were measured at every load
    undecided: tuple[str, ...]  # what more measurements could change, in words
    next_step: NextStep | None


def quality_of(point: Point, max_ratio: float) -> Verdict:
    """Whether the point keeps the limit on every domain, as far as the intervals show."""
    return ratio_verdict(point.ratios, max_ratio)


def ratio_verdict(ratios: Mapping[str, Interval], max_ratio: float) -> Verdict:
    """The same of these ratios. Undecided without any, or without their ends."""
    worst = worst_of(ratios)
    if worst is None:
        return Verdict.UNDECIDED
    verdict = Verdict.of(worst, max_ratio)
    is_vague = worst.low is None and verdict is Verdict.KEPT
    return Verdict.UNDECIDED if is_vague else verdict


def judge(
    model: str, points: Sequence[Point], loads: Sequence[Load], max_ratio: float
) -> FrontierVerdict:
    """The verdict among the ``points``, of which one is the dense model."""
    judged = _Judged(model, points, loads, max_ratio)
    undecided, names = tuple(judged.undecided()), [load.name for load in loads]
    measured = [one for one in points if one.ratios and one.speeds.keys() >= {*names}]
    return FrontierVerdict(
        sentence=judged.sentence(),
        taken={name: point.name for name, point in judged.taken.items()},
        frontier=tuple(one.name for one in frontier(measured, names)),
        undecided=undecided,
        next_step=judged.next_step(undecided),
    )


class _Judged:
    """The choice at each load, in words."""

    def __init__(
        self, model: str, points: Sequence[Point], loads: Sequence[Load], max_ratio: float
    ) -> None:
        self._model = model
        self._points = points
        self._loads = loads
        self._max_ratio = max_ratio
        chosen = {load.name: self._choice(load.name) for load in loads}
        self.taken = {name: point for name, point in chosen.items() if point is not None}

    def _choice(self, load: str) -> Point | None:
        """None if nothing but the dense model was measured."""
        measured = [point for point in self._points if load in point.speeds]
        if all(point.is_dense for point in measured):
            return None
        return choice(
            [one for one in measured if quality_of(one, self._max_ratio) is Verdict.KEPT],
            lambda point: point.speeds[load],
            lambda point: point.worst,
            lambda point: (point.num_removed, point.is_healed, point.is_int8, point.name),
        )

    def sentence(self) -> str:
        groups = self._groups()
        if not groups:
            return f"Nothing is known of {self._model}: no candidate was measured."
        if all(point.is_dense for point, _ in groups):
            return (
                f"Do not prune this model: nothing that costs at most {self._limit} perplexity is "
                f"surely faster {_joined([*self._words(groups[0][1])])}."
            )
        first, loads = groups[0]
        parts = [f"{self._take(first, loads[0])}{self._no_depth(first)}."]
        if first.is_dense:
            parts = [f"Do not prune this model {_joined([*self._words(loads)])}."]
        for point, others in groups[1:]:
            where = _joined([*self._words(others)])
            parts.append(f"{where[0].upper()}{where[1:]} {self._other(point, others[0])}.")
        return " ".join(parts)

    def _groups(self) -> list[tuple[Point, list[Load]]]:
        """The loads by what to take there, in the order in which they were named."""
        by_point: dict[str, tuple[Point, list[Load]]] = {}
        for load in self._loads:
            if (point := self.taken.get(load.name)) is not None:
                by_point.setdefault(point.name, (point, []))[1].append(load)
        return [*by_point.values()]

    def _take(self, point: Point, load: Load) -> str:
        return f"Take {point.short_name}: {self._gain(point, load)}"

    def _gain(self, point: Point, load: Load) -> str:
        return (
            f"{point.speeds[load.name].value:.2f} × as fast {load.words} for "
            f"{percent_more(point.worst)} perplexity"
        )

    def _other(self, point: Point, load: Load) -> str:
        if point.is_dense:
            return "keep the dense model"
        gain = f"{point.speeds[load.name].value:.2f} × for {percent_more(point.worst)}"
        return f"take {point.short_name} ({gain})"

    def _no_depth(self, first: Point) -> str:
        """Where no pruned depth is better than int8."""
        if first.num_removed or not any(point.num_removed for point in self._points):
            return ""
        there = [load for load in self._loads if self.taken.get(load.name) is first]
        where = _joined([*self._words(there, "or")], "or")
        return f"; no pruned depth that costs at most {self._limit} beats it {where}"

    @property
    def _limit(self) -> str:
        return f"{100 * (self._max_ratio - 1):.3g} %"

    def _words(self, loads: Sequence[Load], last: str = "and") -> Iterator[str]:
        """``at one stream`` and ``at 8 streams`` become ``at one stream`` and ``8 streams``."""
        for preposition, group in groupby(loads, lambda load: load.words.partition(" ")[0]):
            words = [load.words.partition(" ")[2] for load in group]
            yield f"{preposition} {_joined(words, last)}"

    def undecided(self) -> Iterator[str]:
        """What could be taken instead, if it were known more closely."""
        for load in self._loads:
            if load.name not in self.taken:
                yield f"{load.words}: not measured"
                continue
            taken = self.taken[load.name]
            for point in self._points:
                if self._may_change(point, taken, load.name):
                    quality = quality_of(point, self._max_ratio)
                    why = _VAGUE_SPEED if quality is Verdict.KEPT else _VAGUE_QUALITY
                    yield f"{point.short_name} {load.words}: {why}"

    def _may_change(self, point: Point, taken: Point, load: str) -> bool:
        speed = point.speeds.get(load)
        if point is taken or speed is None or speed.low is None:
            return False
        if quality_of(point, self._max_ratio) is Verdict.EXCEEDED:
            return False
        return speed.value > _DECISIVE * taken.speeds[load].value

    def next_step(self, undecided: Sequence[str]) -> NextStep | None:
        """The one thing to do. Nothing that cannot change the verdict is proposed."""
        if undecided and all(each.endswith(_VAGUE_QUALITY) for each in undecided):
            deepest = max(point.num_removed for point in self._points)
            return NextStep(
                "evaluate the depths on more text",
                f"sleb jobs submit {self._model} --num-remove {deepest} "
                "--evaluation-max-seconds 600",
            )
        if undecided:
            return NextStep(
                "measure longer, on a machine without other work",
                f"sleb frontier {self._model} --max-ratio {self._max_ratio:g} --max-minutes 60",
            )
        if not any(point.num_removed for point in self._points):
            return NextStep(
                "prune it, as nothing is pruned yet",
                f"sleb jobs submit {self._model} --num-remove 4",
            )
        if (healable := self._healable()) is not None:
            return NextStep(
                f"heal {healable.short_name}, which is faster but loses too much",
                f"sleb jobs heal {healable.checkpoint}",
            )
        first = next(iter(self.taken.values()))
        if first.is_dense:
            return None
        return NextStep("serve it under a name of its own", f"sleb models alias prod {first.name}")

    def _healable(self) -> Point | None:
        """What would be taken at some load, if healing gave back ``HEALED_SHARE`` of the loss."""
        healed = {point.num_removed for point in self._points if point.is_healed}
        for point in self._points:
            worst = point.worst
            if point.is_int8 or worst is None or point.num_removed in {0, *healed}:
                continue
            is_within = worst.value ** (1 - HEALED_SHARE) <= self._max_ratio
            if is_within and any(self._is_faster(point, *other) for other in self.taken.items()):
                return point
        return None

    @staticmethod
    def _is_faster(point: Point, load: str, taken: Point) -> bool:
        speed = point.speeds.get(load)
        return speed is not None and _below(_time(point, load), _time(taken, load))


def percent_more(ratio: Interval | None) -> str:
    """As ``0.6 % more``."""
    if ratio is None:
        return "unknown"
    percent = 100 * (ratio.value - 1)
    digits = 1 if abs(percent) < 10 else 0
    return f"{abs(percent):.{digits}f} % {'more' if percent >= 0 else 'less'}"


def _joined(words: Sequence[str], last: str = "and") -> str:
    *others, end = words
    return f"{', '.join(others)} {last} {end}" if others else end
