"""Shares of the dense model's accuracy above chance, of all tasks and of the worst one, as data.

A model that guesses has 0. Imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pruning.confidence import MIN_DEGREES, reach
from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.quality import Interval


@dataclass(frozen=True)
class TaskResult:
    """One task. ``share`` is None if the dense model is not surely better than guesses."""

    accuracy: float
    dense_accuracy: float
    chance: float
    num_questions: int
    num_available: int  # questions that the task has
    flips: float
    share: Interval | None
    standard_error: float  # of the accuracy
    dense_standard_error: float


@dataclass(frozen=True)
class TaskShares:
    """Shares of the dense model's accuracy above chance, of all tasks and of the worst one."""

    share: Interval | None  # of the mean accuracy
    worst_task: str | None
    worst: Interval | None
    by_task: Mapping[str, TaskResult]

    @property
    def can_be_closer(self) -> bool:
        """Whether these tasks have more questions."""
        return any(one.num_questions < one.num_available for one in self.by_task.values())

    @property
    def num_questions(self) -> int:
        """Of the task with the most."""
        return max(one.num_questions for one in self.by_task.values())

    @classmethod
    def of(cls, tasks: Sequence[PairedTask]) -> "TaskShares | None":
        """None without any task."""
        if not tasks:
            return None
        by_task = {one.task: _result(one) for one in tasks}
        shares = {name: one.share for name, one in by_task.items() if one.share is not None}
        worst = min(shares, key=lambda name: shares[name].value, default=None)
        return cls(share_of(tasks), worst, shares[worst] if worst else None, by_task)


def _result(one: PairedTask) -> TaskResult:
    accuracies = one.accuracy, one.dense_accuracy, one.chance
    numbers = one.num_questions, one.num_available
    errors = one.standard_error, one.dense_standard_error
    return TaskResult(*accuracies, *numbers, one.flips, share_of([one]), *errors)


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
