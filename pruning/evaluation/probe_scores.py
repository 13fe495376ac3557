"""Results of the probe as data: per item, per kind, and compared between two models."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from pruning.removal import standard_error


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
