"""Which blocks a removal order keeps, and the verdict of one round: the block to remove."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import fmean, stdev

Losses = Sequence[float]  # of one set of blocks, a window each, in nats per predicted token


class NonFiniteLoss(ArithmeticError):
    """A loss is infinite or not a number, so candidates cannot be compared."""


@dataclass(frozen=True)
class Removal:
    """Losses are means over windows; a candidate that was clearly too bad may have seen fewer."""

    step: int  # 1 for the first block that goes
    block: int
    loss: float
    dense_loss: float
    runner_up: int | None
    margin: float | None  # nats by which the runner-up is worse, on the windows that both saw
    margin_error: float | None  # its standard error; None with a single window
    scores: Mapping[int, float]
    num_windows: Mapping[int, int]  # behind each score


def kept(num_blocks: int, removed: Iterable[int]) -> tuple[int, ...]:
    """Indices of the blocks that stay when ``removed`` go, ascending."""
    gone = set(removed)
    return tuple(block for block in range(num_blocks) if block not in gone)


def verdict(step: int, dense_loss: float, losses: Mapping[int, Losses]) -> Removal:
    """The candidate with the lowest mean of those that saw every window, the lowest index in a tie.

    The runner-up is the next among those, or else among those that saw the most. ``losses`` has a
    block's absence as key. Raises ``NonFiniteLoss``.
    """
    scores = {block: fmean(losses[block]) for block in sorted(losses)}
    if not all(map(isfinite, [dense_loss, *scores.values()])):
        raise NonFiniteLoss(f"step {step}: dense loss {dense_loss}, without a block {scores}")
    num_windows = {block: len(losses[block]) for block in scores}
    most = max(num_windows.values())
    best = min((b for b in scores if num_windows[b] == most), key=scores.__getitem__)
    others = {b: num_windows[b] for b in scores if b != best}
    gaps = {
        block: paired_gaps(losses[block], losses[best])
        for block, number in others.items()
        if number == max(others.values())  # who saw less was behind somebody else
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


def paired_gaps(losses: Losses, others: Losses) -> list[float]:
    """Differences window by window, as far as both go."""
    return [ours - theirs for ours, theirs in zip(losses, others, strict=False)]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of two or more values."""
    return stdev(values) / sqrt(len(values))
