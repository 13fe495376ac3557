"""The removal that a round of candidates decides on, and the blocks that removals keep."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, sqrt
from statistics import fmean, stdev

Losses = Sequence[float]  # one per window, in nats per predicted token


class NonFiniteLoss(ArithmeticError):
    """A loss is infinite or not a number, so candidates cannot be compared."""


@dataclass(frozen=True)
class Removal:
    """The decision of one round. Losses are means over windows, in nats per predicted token."""

    step: int  # 1 for the first removal
    block: int
    loss: float
    dense_loss: float
    runner_up: int | None
    margin: float | None  # loss of the runner-up minus ``loss``, on their common windows
    margin_error: float | None  # standard error of the margin; None with a single window
    scores: Mapping[int, float]  # loss without each candidate
    num_windows: Mapping[int, int]  # of each score; fewer for clearly worse candidates
    domain_losses: Mapping[str, float] = field(default_factory=dict)  # of a mix: ``loss`` by domain
    dense_domain_losses: Mapping[str, float] = field(default_factory=dict)  # and ``dense_loss``

    @property
    def score(self) -> float:
        """The score of the removed block, by which the round was decided."""
        return self.scores[self.block]


def kept(num_blocks: int, removed: Iterable[int]) -> tuple[int, ...]:
    """The ascending indices of all blocks except ``removed``."""
    left_out = set(removed)
    return tuple(block for block in range(num_blocks) if block not in left_out)


def decide(step: int, dense_loss: float, losses: Mapping[int, Losses]) -> Removal:
    """Choose the candidate with the lowest mean loss among those with losses of all windows.

    Ties go to the lowest index. The runner-up is the next best of the candidates that have the most
    windows. ``losses`` are those of the model without each candidate. Raises ``NonFiniteLoss``.
    """
    scores = {block: fmean(losses[block]) for block in sorted(losses)}
    if not all(map(isfinite, [dense_loss, *scores.values()])):
        raise NonFiniteLoss(
            f"step {step}: dense loss {dense_loss}, losses without each block {scores}"
        )
    num_windows = {block: len(losses[block]) for block in scores}
    most = max(num_windows.values())
    best = min((b for b in scores if num_windows[b] == most), key=scores.__getitem__)
    others = {b: num_windows[b] for b in scores if b != best}
    gaps = {
        block: paired_gaps(losses[block], losses[best])
        for block, number in others.items()
        if number == max(others.values())  # the others dropped out earlier
    }
    runner_up = min(gaps, key=lambda block: fmean(gaps[block]), default=None)
    gap = [] if runner_up is None else gaps[runner_up]
    return Removal(
        step=step,
        block=best,
        loss=scores[best],
        dense_loss=dense_loss,
        runner_up=runner_up,
        margin=fmean(gap) if gap else None,
        margin_error=standard_error(gap) if len(gap) > 1 else None,
        scores=scores,
        num_windows=num_windows,
    )


def is_tie(margin: float | None, margin_error: float | None) -> bool:
    """Whether the runner-up may be as good: the margin is inside two standard errors."""
    return margin is not None and margin_error is not None and margin < 2 * margin_error


def by_domain(losses: Losses, domains: Sequence[str]) -> dict[str, float]:
    """The mean loss of each domain, of losses on windows of these; empty without several."""
    if len(set(domains)) < 2 or len(losses) != len(domains):
        return {}
    losses_of: dict[str, list[float]] = {}
    for domain, loss in zip(domains, losses, strict=True):
        losses_of.setdefault(domain, []).append(loss)
    return {domain: fmean(losses) for domain, losses in losses_of.items()}


def paired_gaps(losses: Losses, others: Losses) -> list[float]:
    """Differences per window, for the windows that both have."""
    return [ours - theirs for ours, theirs in zip(losses, others, strict=False)]


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean of two or more values."""
    return stdev(values) / sqrt(len(values))
