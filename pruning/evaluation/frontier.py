"""Which candidate to take at each load, in a sentence that a person reads, and what to do next.

The one judge behind `sleb frontier`, `sleb advise`, the model card and the page: they differ in
what is known of the candidates. Imports no torch.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from pruning.evaluation.limits import Judgement, Limits
from pruning.evaluation.points import Load, Point, choice, frontier, is_faster
from pruning.evaluation.quality import Interval
from pruning.evaluation.verdict import Verdict

HEALED_SHARE = 0.8  # of the lost nats, which no healing of these releases has given back
_VAGUE_SPEED = "its speed is not known closely enough"
_PREDICTED_SPEED = "its speed is predicted, not measured"
_VAGUE_QUALITY = "its perplexity is not known closely enough"
_NO_PROBE = "its probe score is not measured"
_VAGUE_TASKS = "its accuracy on tasks is not known closely enough"
_VAGUE = {(): _VAGUE_SPEED, ("probe",): _NO_PROBE, ("tasks",): _VAGUE_TASKS}
_OF_ACCURACY = "% of the task accuracy above chance"
PROD = "prod"  # the name for what is taken
PROD_PATH = f"/models/{PROD}"
FRONTIERS_PATH = "/frontiers"
_DECISIVE = 1.05  # a median gain of less changes no choice


@dataclass(frozen=True)
class StepRequest:
    """The request to a service that does what a command does."""

    method: str
    path: str
    body: Mapping[str, object]


@dataclass(frozen=True)
class NextStep:
    """What to do with the verdict, or what could change it."""

    words: str
    command: str
    request: StepRequest | None = None  # None where a service cannot do it


@dataclass(frozen=True)
class Judged:
    """A candidate with what the limits say of it."""

    point: Point
    judgement: Judgement


@dataclass(frozen=True)
class FrontierVerdict:
    """``taken`` has the name of the candidate to take at each load that was measured."""

    model: str
    limits: Limits
    loads: tuple[Load, ...]  # what is shown of one load alone is that of the first
    candidates: tuple[Judged, ...]  # the dense model too
    sentence: str
    taken: Mapping[str, str]
    nearest: str | None  # what the sentence describes where nothing is taken at the first load
    frontier: tuple[str, ...]  # of those that were measured at every load
    undecided: tuple[str, ...]  # what more measurements could change, in words
    next_step: NextStep | None

    def taken_at(self, load: str) -> str | None:
        """None for the dense model, and for a load at which nothing was measured."""
        name = self.taken.get(load)
        return None if name == self.model else name


def judge(
    model: str, points: Sequence[Point], loads: Sequence[Load], limits: Limits
) -> FrontierVerdict:
    """The verdict among the ``points``, of which one is the dense model."""
    judged = _Judged(model, points, loads, limits)
    undecided, names = tuple(judged.undecided()), [load.name for load in loads]
    measured = [one for one in points if one.ratios and one.speeds.keys() >= {*names}]
    return FrontierVerdict(
        model,
        limits,
        tuple(loads),
        tuple(Judged(one, limits.judge(one, names)) for one in points),
        sentence=judged.sentence(),
        taken={name: point.name for name, point in judged.taken.items()},
        nearest=judged.nearest.name if judged.nearest else None,
        frontier=tuple(one.name for one in frontier(measured, names)),
        undecided=undecided,
        next_step=judged.next_step(undecided),
    )


class _Judged:
    """The choice at each load, in words."""

    def __init__(
        self, model: str, points: Sequence[Point], loads: Sequence[Load], limits: Limits
    ) -> None:
        self._model = model
        self._points = points
        self._loads = loads
        self._limits = limits
        chosen = {load.name: self._choice(load.name) for load in loads}
        self.taken = {name: point for name, point in chosen.items() if point is not None}
        self.nearest = self._nearest()

    def _choice(self, load: str) -> Point | None:
        """None if nothing but the dense model was measured."""
        measured = [point for point in self._points if load in point.speeds]
        if all(point.is_dense for point in measured):
            return None
        return choice(
            [one for one in measured if self._verdict(one, load) is Verdict.KEPT],
            lambda point: point.speeds[load],
            lambda point: point.worst,
            lambda point: (point.num_removed, point.is_healed, point.is_int8, point.name),
        )

    def _verdict(self, point: Point, load: str) -> Verdict:
        return self._limits.judge(point, [load]).verdict

    def _nearest(self) -> Point | None:
        """The best of those that are fast enough at the first load, else the fastest."""
        first = self._loads[0].name
        taken = self.taken.get(first)
        if taken is not None and not taken.is_dense:
            return None
        known = [one for one in self._points if first in one.speeds and not one.is_dense]
        fast = [one for one in known if one.speeds[first].value >= self._limits.min_speedup]
        if not fast:
            return max(known, key=lambda one: one.speeds[first].value, default=None)
        return min(fast, key=lambda one: one.worst.value if one.worst else math.inf)

    def sentence(self) -> str:
        return " ".join(self._sentences())

    def _sentences(self) -> Iterator[str]:
        groups = self._groups()
        if not groups:
            is_pruned = any(point.num_removed for point in self._points)
            why = "no candidate was measured" if is_pruned else "it is not pruned"
            yield f"Nothing is known of {self._model}: {why}."
        elif all(point.is_dense for point, _ in groups):
            yield self._nothing(groups[0][1])
        else:
            yield from self._taken(groups)
        if self._lacks_int8:
            is_read = any(one.is_int8 and one.ratios for one in self._points if not one.num_removed)
            what = "The speed of int8 weights is" if is_read else "Int8 weights are"
            yield f"{what} not measured yet."

    def _nothing(self, loads: Sequence[Load]) -> str:
        """That the dense model is to be kept, and what comes nearest to the limits."""
        keep = "Keep the dense model for now" if [*self.undecided()] else "Do not prune this model"
        is_all = not self._lacks_int8 and any(point.is_int8 for point in self._points)
        faster = "faster"
        if (least := self._limits.min_speedup) > 1:
            faster = f"at least {least:g} × as fast"
        said = (
            f"{keep}: {'nothing' if is_all else 'no pruned depth'} that costs at most "
            f"{self._limit} perplexity{self._task_limit} is surely {faster} "
            f"{_joined([*self._words(loads)])}."
        )
        if self.nearest is None:
            return said
        return f"{said} {self._closest(self.nearest, loads[0])}"

    def _closest(self, nearest: Point, load: Load) -> str:
        speed = nearest.speeds.get(load.name)
        how = "" if speed is None else f"{self._speed(nearest, load)} as fast for "
        return f"The closest, {nearest.short_name}, is {how}{_cost(nearest)}."

    def _taken(self, groups: Sequence[tuple[Point, list[Load]]]) -> Iterator[str]:
        first, loads = groups[0]
        if first.is_dense:
            yield f"Do not prune this model {_joined([*self._words(loads)])}."
        else:
            gain = f"{self._speed(first, loads[0])} as fast {loads[0].words} for"
            yield f"Take {first.name}: {gain} {_cost(first)}{self._no_depth(first)}."
        for point, others in groups[1:]:
            where = _joined([*self._words(others)])
            yield f"{where[0].upper()}{where[1:]} {self._other(point, others[0])}."

    def _groups(self) -> list[tuple[Point, list[Load]]]:
        """The loads by what to take there, in the order in which they were named."""
        by_point: dict[str, tuple[Point, list[Load]]] = {}
        for load in self._loads:
            if (point := self.taken.get(load.name)) is not None:
                by_point.setdefault(point.name, (point, []))[1].append(load)
        return [*by_point.values()]

    @staticmethod
    def _speed(point: Point, load: Load) -> str:
        how = " (predicted)" if load.name in point.predicted else ""
        return f"{point.speeds[load.name].value:.2f} ×{how}"

    def _other(self, point: Point, load: Load) -> str:
        if point.is_dense:
            return "keep the dense model"
        cost = f"{percent_more(point.worst)}{_task_loss(point)}"
        return f"take {point.short_name} ({self._speed(point, load)} for {cost})"

    def _no_depth(self, first: Point) -> str:
        """Where no pruned depth is better than int8."""
        if first.num_removed or not any(point.num_removed for point in self._points):
            return ""
        there = [load for load in self._loads if self.taken.get(load.name) is first]
        where = _joined([*self._words(there, "or")], "or")
        limits = f"{self._limit}{self._task_limit}"
        return f"; no pruned depth that costs at most {limits} beats it {where}"

    @property
    def _limit(self) -> str:
        return f"{100 * (self._limits.max_ratio - 1):.3g} %"

    @property
    def _task_limit(self) -> str:
        least = self._limits.min_task_share
        return "" if least is None else f" and {100 * (1 - least):.3g} {_OF_ACCURACY}"

    @property
    def _lacks_int8(self) -> bool:
        """Whether int8 weights of the dense model could be had, and are not known."""
        first = self._loads[0].name
        return any(
            point.is_int8 and not point.num_removed and not (point.ratios and first in point.speeds)
            for point in self._points
        )

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
                if (why := self._open(point, taken, load.name)) is not None:
                    yield f"{point.short_name} {load.words}: {why}"

    def _open(self, point: Point, taken: Point, load: str) -> str | None:
        """What has to be known of the point to tell whether it is to be taken. None: nothing."""
        speed = point.speeds.get(load)
        if speed is None or point.is_dense:
            return None
        if point is taken:
            return _PREDICTED_SPEED if load in point.predicted else None
        judgement = self._limits.judge(point, [load])
        is_beyond = judgement.verdict is Verdict.EXCEEDED
        if is_beyond or speed.value <= _DECISIVE * taken.speeds[load].value:
            return None
        if load in point.predicted:
            return _PREDICTED_SPEED
        vague = tuple(name for name in judgement.failing if name != "speed")
        return _VAGUE.get(vague, _VAGUE_QUALITY)

    def next_step(self, undecided: Sequence[str]) -> NextStep | None:
        """The one thing to do. Nothing that cannot change the verdict is proposed."""
        return self._measurement(undecided) or self._change()

    def _measurement(self, undecided: Sequence[str]) -> NextStep | None:
        """What would decide what is open."""
        why = {each.rpartition(": ")[2] for each in undecided}
        if self._lacks_int8 or _PREDICTED_SPEED in why:
            return self._frontier("measure int8 weights and all depths side by side")
        deepest = max(point.num_removed for point in self._points)
        again = f"sleb jobs submit {self._model} --num-remove {deepest}"
        if why == {_VAGUE_QUALITY}:
            more = f"{again} --evaluation-max-seconds 600"
            request = self._job(deepest, evaluation={"max_seconds": 600})
            return NextStep("evaluate the depths on more text", more, request)
        if why == {_NO_PROBE}:
            drop = 1 - (self._limits.min_probe or 0)
            command = f"{again} --gate-max-probe-drop {drop:g}"
            request = self._job(deepest, gate={"max_probe_drop": drop})
            return NextStep("measure the probe too", command, request)
        if why == {_VAGUE_TASKS}:
            return self._questions()
        if why and any(not point.is_dense for point in self._points):
            words = "measure longer, on a machine without other work"
            return self._frontier(words, max_minutes=60)
        return None

    def _questions(self) -> NextStep | None:
        """None if the tasks have no more questions."""
        pairs = self.taken.items()
        vague = [
            point.tasks
            for point in self._points
            if any(self._open(point, taken, load) == _VAGUE_TASKS for load, taken in pairs)
        ]
        if any(tasks is None for tasks in vague):
            return self._frontier("measure their accuracy on tasks")
        known = max(tasks.num_questions for tasks in vague if tasks)
        if not any(tasks.can_be_closer for tasks in vague if tasks):
            return None
        return self._frontier("ask more questions of tasks", task_questions=4 * known)

    def _change(self) -> NextStep | None:
        """What to do where everything is decided."""
        if not any(point.num_removed for point in self._points):
            return NextStep(
                "prune it, as nothing is pruned yet",
                f"sleb jobs submit {self._model} --num-remove 4",
                self._job(4),
            )
        if (healable := self._healable()) is not None:
            return NextStep(
                f"heal {healable.short_name}, which is faster but loses too much",
                f"sleb jobs heal {healable.checkpoint}",
                StepRequest("POST", "/heal-jobs", {"model": healable.checkpoint}),
            )
        first = next(iter(self.taken.values()))
        if first.is_dense:
            return None
        return NextStep(
            f"serve it as {PROD}",
            f"sleb models alias {PROD} {first.name}",
            StepRequest("PUT", PROD_PATH, {"target": first.name}),
        )

    def _job(self, num_remove: int, **settings: object) -> StepRequest:
        body = {"model": self._model, "num_remove": num_remove, **settings}
        return StepRequest("POST", "/prune-jobs", body)

    def _frontier(self, words: str, **settings: float) -> NextStep:
        given = {**self._own_limits(), **settings}
        options = (f" --{name.replace('_', '-')} {value:g}" for name, value in given.items())
        request = StepRequest("POST", FRONTIERS_PATH, {"model": self._model, **given})
        return NextStep(words, f"sleb frontier {self._model}{''.join(options)}", request)

    def _own_limits(self) -> dict[str, float]:
        """Those that are not the default ones."""
        given = (
            ("max_ratio", self._limits.max_ratio, Limits.max_ratio),
            ("min_speedup", self._limits.min_speedup, Limits.min_speedup),
            ("min_task_share", self._limits.min_task_share, Limits.min_task_share),
        )
        return {name: value for name, value, usual in given if value not in (usual, None)}

    def _healable(self) -> Point | None:
        """What would be taken at some load, if healing gave back ``HEALED_SHARE`` of the loss."""
        healed = {point.num_removed for point in self._points if point.is_healed}
        for point in self._points:
            worst = point.worst
            if point.is_int8 or worst is None or point.num_removed in {0, *healed}:
                continue
            is_within = worst.value ** (1 - HEALED_SHARE) <= self._limits.max_ratio
            if is_within and any(self._would_win(point, *other) for other in self.taken.items()):
                return point
        return None

    def _would_win(self, point: Point, load: str, taken: Point) -> bool:
        speed = point.speeds.get(load)
        if speed is None or not is_faster(point, taken, load):
            return False
        return Verdict.at_least(speed, self._limits.min_speedup) is Verdict.KEPT


def _cost(point: Point) -> str:
    """As ``0.6 % more perplexity and 2 % of the task accuracy above chance``."""
    return f"{percent_more(point.worst)} perplexity{_task_loss(point)}"


def _task_loss(point: Point) -> str:
    """Empty if it is not known."""
    if point.tasks is None or point.tasks.share is None:
        return ""
    lost = max(0.0, 100 * (1 - point.tasks.share.value))
    return f" and {lost:.{1 if lost < 10 else 0}f} {_OF_ACCURACY}"


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
