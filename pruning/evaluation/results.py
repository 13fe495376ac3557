"""Results as data: of the probe, of zero-shot tasks, sample texts, and how far it all went.

The manifest of a checkpoint records them. Imports no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from pruning.removal import standard_error
from pruning.spec.tasks import PAPER_TASKS


class Kind(StrEnum):
    ARITHMETIC = "arithmetic"
    COPYING = "copying"
    JSON = "json"
    CODE = "code"


@dataclass(frozen=True)
class ItemResult:
    """The result of a model on one item of the probe."""

    kind: Kind
    is_chosen: bool  # the right answer is likelier than every wrong one
    is_written: bool  # greedy decoding writes the right answer

    @property
    def score(self) -> float:
        return (self.is_chosen + self.is_written) / 2


@dataclass(frozen=True)
class KindScore:
    """Shares of the items, 0 to 1; ``score`` is the mean of the other two.

    Guessing gives 1/4 of ``chosen`` and 0 of ``written``.
    """

    kind: Kind
    num_items: int
    chosen: float
    written: float
    score: float
    standard_error: float


@dataclass(frozen=True)
class ProbeScore:
    """The mean score of all kinds. Scores compare only for equal ``digest``, of the items."""

    score: float
    standard_error: float
    kinds: tuple[KindScore, ...]
    digest: str


def summary(answers: Sequence[ItemResult], items_digest: str) -> ProbeScore:
    asked = {answer.kind for answer in answers}
    kinds = tuple(_kind_score(kind, answers) for kind in Kind if kind in asked)
    return ProbeScore(
        score=fmean(kind.score for kind in kinds),
        standard_error=sum(kind.standard_error**2 for kind in kinds) ** 0.5 / len(kinds),
        kinds=kinds,
        digest=items_digest,
    )


@dataclass(frozen=True)
class ProbeComparison:
    """The same items for two models. ``drop`` is the loss of score.

    The standard error is that of paired differences, so that items hard for both do not add to it.
    """

    dense: ProbeScore
    pruned: ProbeScore
    drop: float
    standard_error: float


def compare(
    dense: Sequence[ItemResult], pruned: Sequence[ItemResult], items_digest: str
) -> ProbeComparison:
    """Compare results on the same items in the same order, at least two of each kind."""
    lost: dict[Kind, list[float]] = {}
    for before, after in zip(dense, pruned, strict=True):
        lost.setdefault(before.kind, []).append(before.score - after.score)
    errors = [standard_error(values) for values in lost.values()]
    return ProbeComparison(
        summary(dense, items_digest),
        summary(pruned, items_digest),
        drop=fmean(map(fmean, lost.values())),
        standard_error=sum(error**2 for error in errors) ** 0.5 / len(errors),
    )


def _kind_score(kind: Kind, answers: Sequence[ItemResult]) -> KindScore:
    of_kind = [answer for answer in answers if answer.kind is kind]
    scores = [answer.score for answer in of_kind]
    return KindScore(
        kind=kind,
        num_items=len(of_kind),
        chosen=fmean(answer.is_chosen for answer in of_kind),
        written=fmean(answer.is_written for answer in of_kind),
        score=fmean(scores),
        standard_error=standard_error(scores),
    )


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


def mean_accuracy(scores: Sequence[TaskScore]) -> float | None:
    """Return the mean over the paper's tasks, 0 to 1. None unless all five were scored."""
    values = {score.task: score.value for score in scores}
    if not values.keys() >= set(PAPER_TASKS):
        return None
    return fmean(values[task] for task in PAPER_TASKS)


@dataclass(frozen=True)
class Sample:
    """What the likeliest tokens after ``prompt`` are, by both models."""

    prompt: str
    dense: str
    pruned: str


class Ended(StrEnum):
    """Why no more windows were measured."""

    MARGIN = "margin"  # all intervals were narrow enough
    TIME = "time"
    TEXT = "text"  # there are no more windows
    NUMBER = "number"  # it was asked for


@dataclass(frozen=True)
class Extent:
    """What ended an evaluation, and what it was asked for."""

    ended: Ended
    margin: float  # that was wanted, relative
    max_seconds: float

    def __str__(self) -> str:
        wanted = f"±{100 * self.margin:.3g} %"
        return {
            Ended.MARGIN: f"windows were added until every ratio was known to {wanted}",
            Ended.TIME: f"stopped after {self.max_seconds:g} s, before every ratio was known to "
            f"{wanted}",
            Ended.TEXT: f"the text has no more windows, and not every ratio is known to {wanted}",
            Ended.NUMBER: "the number of windows was set",
        }[self.ended]
