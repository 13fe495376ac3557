"""A model and its dense model on the same questions of zero-shot tasks, as data.

What counts is the share of the dense model's accuracy above chance that is left: a model that
guesses has 0. Imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pruning.confidence import MIN_DEGREES, reach
from pruning.evaluation.quality import Interval
from pruning.evaluation.results import PAPER_TASKS


@dataclass(frozen=True)
class Answers:
    """Which questions of a task a model answers right, in the order of the task."""

    task: str
    right: tuple[bool, ...]
    chance: float  # accuracy of guesses
    num_available: int  # questions that the task has

    def against(self, dense: "Answers") -> "PairedTask":
        """Counted with those of the dense model to the same questions."""
        pairs = [*zip(self.right, dense.right, strict=True)]
        counts = {
            "both": pairs.count((True, True)),
            "dense_only": pairs.count((False, True)),
            "own_only": pairs.count((True, False)),
            "neither": pairs.count((False, False)),
        }
        return PairedTask(self.task, self.chance, self.num_available, **counts)


@dataclass(frozen=True)
class PairedTask:
    """Numbers of questions by who answers them right. Raises ``ValueError`` for impossible ones."""

    task: str
    chance: float
    num_available: int
    both: int
    dense_only: int
    own_only: int
    neither: int

    def __post_init__(self) -> None:
        counts = (self.both, self.dense_only, self.own_only, self.neither)
        if min(counts) < 0 or not self.num_questions or not 0 <= self.chance < 1:
            raise ValueError(f"the answers to the task {self.task!r} cannot be so many: {counts}")

    @property
    def num_questions(self) -> int:
        return self.both + self.dense_only + self.own_only + self.neither

    @property
    def accuracy(self) -> float:
        return (self.both + self.own_only) / self.num_questions

    @property
    def dense_accuracy(self) -> float:
        return (self.both + self.dense_only) / self.num_questions

    @property
    def flips(self) -> float:
        """The share of answers that became right or wrong (arXiv 2407.09141)."""
        return (self.dense_only + self.own_only) / self.num_questions

    @property
    def covariance(self) -> tuple[float, float, float]:
        """The variances of both accuracies, own first, and their covariance.

        With half a question more of each kind: few questions without a flip do not exclude one
        (Agresti and Min, Statistics in Medicine, 2005).
        """
        both, dense_only, own_only = (
            0.5 + count for count in (self.both, self.dense_only, self.own_only)
        )
        number = self.num_questions + 2
        own, dense = (both + own_only) / number, (both + dense_only) / number
        covered = both / number - own * dense
        return own * (1 - own) / number, dense * (1 - dense) / number, covered / number


@dataclass(frozen=True)
class TaskResult:
    """One task. ``share`` is None if the dense model is not surely better than guesses."""

    accuracy: float
    dense_accuracy: float
    chance: float
    num_questions: int
    flips: float
    share: Interval | None


@dataclass(frozen=True)
class TaskShares:
    """Shares of the dense model's accuracy above chance, of all tasks and of the worst one."""

    share: Interval | None  # of the mean accuracy
    worst_task: str | None
    worst: Interval | None
    by_task: Mapping[str, TaskResult]
    can_be_closer: bool  # whether there are more questions, of these tasks or of the paper's

    @classmethod
    def of(cls, tasks: Sequence[PairedTask]) -> "TaskShares | None":
        """None without any task."""
        if not tasks:
            return None
        by_task = {one.task: _result(one) for one in tasks}
        shares = {name: one.share for name, one in by_task.items() if one.share is not None}
        worst = min(shares, key=lambda name: shares[name].value, default=None)
        is_sample = any(one.num_questions < one.num_available for one in tasks)
        return cls(
            share_of(tasks),
            worst,
            shares[worst] if worst else None,
            by_task,
            can_be_closer=is_sample or not {*PAPER_TASKS} <= {*by_task},
        )


def _result(one: PairedTask) -> TaskResult:
    accuracies = one.accuracy, one.dense_accuracy, one.chance
    return TaskResult(*accuracies, one.num_questions, one.flips, share_of([one]))


def share_of(tasks: Sequence[PairedTask]) -> Interval | None:
    """The share of the mean accuracy above chance of these tasks, which count alike.

    The interval is Fieller's, of a ratio of two means that vary together. It is None if it has no
    ends: then the dense model is not surely better than guesses.
    """
    degrees = sum(one.num_questions for one in tasks) - len(tasks)
    if degrees < MIN_DEGREES:
        return None
    own = sum(one.accuracy - one.chance for one in tasks)
    dense = sum(one.dense_accuracy - one.chance for one in tasks)
    of_own, of_dense, of_both = (
        reach(degrees) ** 2 * sum(one) for one in zip(*(t.covariance for t in tasks), strict=True)
    )
    square = dense**2 - of_dense
    if dense <= 0 or square <= 0:
        return None
    middle = (own * dense - of_both) / square
    half = math.sqrt(max(0.0, middle**2 - (own**2 - of_own) / square))
    return Interval(own / dense, middle - half, middle + half)
