"""A model and its dense model on the same questions of tasks, as data. Imports no torch."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Answers:
    """Which questions of a task a model answers right, in the order of the task."""

    task: str
    right: tuple[bool, ...]
    chance: float  # accuracy of guesses
    num_available: int  # questions that the task has
    metric: str = "acc"  # or acc_norm, by which an answer is right

    def against(self, dense: "Answers") -> "PairedTask":
        """Counted with those of the dense model to the same questions."""
        pairs = [*zip(self.right, dense.right, strict=True)]
        counts = {
            "both": pairs.count((True, True)),
            "dense_only": pairs.count((False, True)),
            "own_only": pairs.count((True, False)),
            "neither": pairs.count((False, False)),
        }
        return PairedTask(self.task, self.chance, self.num_available, **counts, metric=self.metric)


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
    metric: str = "acc"

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
    def standard_error(self) -> float:
        """That of the accuracy."""
        return self._error_of(self.accuracy)

    @property
    def dense_standard_error(self) -> float:
        return self._error_of(self.dense_accuracy)

    def _error_of(self, accuracy: float) -> float:
        return math.sqrt(accuracy * (1 - accuracy) / max(1, self.num_questions - 1))

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
