"""What a model has to keep to be worth taking, and whether a candidate is shown to keep it.

The end of an interval counts, and not its value. Imports no torch.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Self

from pruning.evaluation.points import Point
from pruning.evaluation.quality import Interval
from pruning.evaluation.task_shares import TaskShares
from pruning.evaluation.verdict import Verdict
from pruning.spec import refused


@dataclass(frozen=True)
class Finding:
    """A limit that is not kept, or not known to be: of ``speed``, ``quality``, a domain,
    ``probe``, ``tasks`` or one task.
    """

    verdict: Verdict
    about: str
    reason: str


@dataclass(frozen=True)
class Judgement:
    """What the limits say of a candidate: ``because`` is empty if it keeps them all."""

    verdict: Verdict = Verdict.KEPT
    failing: tuple[str, ...] = ()
    because: str = ""

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Self:
        """The findings that weigh most."""
        found = [*findings]
        for verdict in (Verdict.EXCEEDED, Verdict.UNDECIDED):
            if failing := {one.about: one.reason for one in found if one.verdict is verdict}:
                return cls(verdict, tuple(failing), "; ".join(failing.values()))
        return cls()


@dataclass(frozen=True)
class Limits:
    """What a model has to keep to be worth taking instead of the dense one."""

    max_ratio: float = 1.05  # of perplexity to the dense model's, on the worst domain
    min_speedup: float = 1.1  # time, dense / this
    min_probe: float | None = None  # score of the probe, 0 to 1
    min_task_share: float | None = None  # of the dense model's accuracy above chance, 0 to 1

    def __post_init__(self) -> None:
        for name, value, low in (
            ("max_ratio", self.max_ratio, 1.0),
            ("min_speedup", self.min_speedup, 1.0),
        ):
            if not low <= value < math.inf:  # false for NaN
                raise refused(name, value, f"a finite number, {low:g} or more")
        for name, share in (("min_probe", self.min_probe), ("min_task_share", self.min_task_share)):
            if share is not None and not 0 <= share <= 1:
                raise refused(name, share, "0 to 1")

    def __str__(self) -> str:
        said = (
            f"at most {self.max_ratio:g} × the dense perplexity on every text, a speed-up "
            f"of at least {self.min_speedup:g} ×"
        )
        if self.min_probe is not None:
            said += f", a probe score of at least {self.min_probe:g}"
        if self.min_task_share is not None:
            said += f", at least {self.min_task_share:g} of the task accuracy above chance"
        return said

    def judge(self, point: Point, loads: Iterable[str]) -> Judgement:
        """Whether it is shown to keep them, by its speed at the load where it is fastest."""
        return Judgement() if point.is_dense else Judgement.of(self._findings(point, loads))

    def quality(self, ratios: Mapping[str, Interval]) -> Verdict:
        """Whether these ratios are shown to be within the limit. Undecided without any."""
        return Judgement.of(self._of_quality(ratios)).verdict

    def _findings(self, point: Point, loads: Iterable[str]) -> Iterator[Finding]:
        known = [point.speeds[load] for load in loads if load in point.speeds]
        speed = max(known, key=lambda each: each.value, default=None)
        if speed is None:
            yield Finding(Verdict.UNDECIDED, "speed", "its speed is not measured")
        elif (verdict := Verdict.at_least(speed, self.min_speedup)) is not Verdict.KEPT:
            side = "below" if verdict is Verdict.EXCEEDED else "undecided at"
            yield Finding(verdict, "speed", f"speed {times(speed)} is {side} {self.min_speedup:g}")
        yield from self._of_quality(point.ratios)
        if self.min_probe is not None and point.probe is None:
            yield Finding(Verdict.UNDECIDED, "probe", "its probe score is not measured")
        elif self.min_probe is not None and (score := _score(point)) < self.min_probe:
            reason = f"probe score {score:.2f} is below {self.min_probe:g}"
            yield Finding(Verdict.EXCEEDED, "probe", reason)
        if self.min_task_share is not None:
            yield from self._of_tasks(point.tasks, self.min_task_share)

    @staticmethod
    def _of_tasks(tasks: TaskShares | None, least: float) -> Iterator[Finding]:
        """The share of all tasks, and each task that is surely below the limit."""
        if tasks is None or tasks.share is None:
            yield Finding(Verdict.UNDECIDED, "tasks", "its accuracy on tasks is not known")
            return
        if (verdict := Verdict.at_least(tasks.share, least)) is Verdict.UNDECIDED:
            yield Finding(verdict, "tasks", f"tasks {times(tasks.share)} is undecided at {least:g}")
        shares = {name: one.share for name, one in tasks.by_task.items()}
        for name, share in {"tasks": tasks.share, **shares}.items():
            if share and Verdict.at_least(share, least) is Verdict.EXCEEDED:
                reason = f"{name} {times(share)} is below {least:g}"
                yield Finding(Verdict.EXCEEDED, name, reason)

    def _of_quality(self, ratios: Mapping[str, Interval]) -> Iterator[Finding]:
        """Every domain whose ratio is not shown to be within the limit."""
        if not ratios:
            yield Finding(Verdict.UNDECIDED, "quality", "its perplexity is not measured")
        for domain, ratio in ratios.items():
            verdict = Verdict.of(ratio, self.max_ratio)
            if ratio.low is None and verdict is Verdict.KEPT:
                verdict = Verdict.UNDECIDED
            side = "beyond" if verdict is Verdict.EXCEEDED else "undecided at"
            if verdict is not Verdict.KEPT:
                reason = f"{domain} {times(ratio)} is {side} {self.max_ratio:g}"
                yield Finding(verdict, domain, reason)


def _score(point: Point) -> float:
    return math.inf if point.probe is None else point.probe.pruned.score


def times(interval: Interval) -> str:
    """A ratio with its interval, in few characters."""
    ends = "" if interval.low is None else f" ({interval.low:.2f} to {interval.high:.2f})"
    return f"{interval.value:.2f} ×{ends}"
