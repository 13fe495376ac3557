"""Scores of tasks of lm-eval, and the mean that the paper reports, as data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

PAPER_TASKS = ("piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge")


@dataclass(frozen=True)
class TaskScore:
    """``value`` is of ``metric``: acc_norm, else acc, else the first that the task has."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    num_samples: int
    num_shots: int
    metrics: Mapping[str, float]  # all that the task has


@dataclass(frozen=True)
class ZeroShot:
    """The paper's five tasks, asked of the dense model and of the one without all that went."""

    dense: tuple[TaskScore, ...]
    pruned: tuple[TaskScore, ...]

    @property
    def dense_mean(self) -> float | None:
        return mean_accuracy(self.dense)

    @property
    def pruned_mean(self) -> float | None:
        return mean_accuracy(self.pruned)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "ZeroShot":
        dense, pruned = (
            tuple(TaskScore(**score) for score in data[name]) for name in ("dense", "pruned")
        )
        return cls(dense, pruned)


def mean_accuracy(scores: Sequence[TaskScore]) -> float | None:
    """What the paper reports, 0 to 1; None unless all of its five tasks are there."""
    values = {score.task: score.value for score in scores}
    if not values.keys() >= set(PAPER_TASKS):
        return None
    return fmean(values[task] for task in PAPER_TASKS)
