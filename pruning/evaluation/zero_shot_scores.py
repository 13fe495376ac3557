"""The scores of zero-shot tasks, as the manifest of a checkpoint records them. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

PAPER_TASKS = ("piqa", "winogrande", "hellaswag", "arc_easy", "arc_challenge")


@dataclass(frozen=True)
class TaskScore:
    """The result of one task. ``metric`` is acc_norm, else acc, else the first of the task."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    num_samples: int
    num_shots: int
    metrics: Mapping[str, float]  # all of the task, by name


@dataclass(frozen=True)
class ZeroShot:
    """Scores of the paper's five tasks, of the dense and of the pruned model."""

    dense: tuple[TaskScore, ...]
    pruned: tuple[TaskScore, ...]

    @property
    def dense_mean(self) -> float | None:
        return mean_accuracy(self.dense)

    @property
    def pruned_mean(self) -> float | None:
        return mean_accuracy(self.pruned)


def mean_accuracy(scores: Sequence[TaskScore]) -> float | None:
    """Return the mean over the paper's tasks, 0 to 1. None unless all five were scored."""
    values = {score.task: score.value for score in scores}
    if not values.keys() >= set(PAPER_TASKS):
        return None
    return fmean(values[task] for task in PAPER_TASKS)
