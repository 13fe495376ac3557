"""SLEB: greedy removal of redundant transformer blocks (arXiv 2402.09025, section 3).

Block indices only: models, text, devices and what a loss is belong to the scorer.
"""

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import Protocol

from pruning.removal import Losses, Removal, verdict

Blocks = tuple[int, ...]  # indices in the dense model, ascending


class TooManyRemovals(ValueError):
    """More blocks are to be removed than the barriers leave free."""


class RoundScorer(Protocol):
    def losses(self, keep: Blocks) -> Losses:
        """Losses of the model that keeps exactly these blocks."""

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterable[tuple[int, Losses]]:
        """Yield ``(block, losses of keep without it)`` for each candidate, in any order; those of
        the first windows alone where they show that it cannot be the best.
        """


def sleb(
    scorer: RoundScorer,
    num_blocks: int,
    num_remove: int,
    *,
    protect_first: int = 1,
    protect_last: int = 1,
    removed: Sequence[int] = (),
    dense_loss: float | None = None,
) -> Iterator[Removal]:
    """Yield one removal after the other: always the block whose absence hurts least.

    Candidates are the alive blocks but the first and last few; ties go to the lowest index.
    ``removed`` resumes behind blocks chosen earlier, ``dense_loss`` then saves an evaluation.
    Raises ``TooManyRemovals`` or ``ValueError`` before any work, later what ``verdict`` raises.
    """
    free = max(0, num_blocks - max(1, protect_first + protect_last))  # one block has to stay
    if not len(removed) <= num_remove <= free or min(protect_first, protect_last) < 0:
        raise TooManyRemovals(f"cannot remove {num_remove} of {num_blocks} blocks: {free} are free")
    keep = list(range(num_blocks))
    for block in removed:
        if block not in keep[protect_first : len(keep) - protect_last]:
            raise ValueError(f"cannot resume from {list(removed)}: {block} was no candidate")
        keep.remove(block)
    for step in range(len(removed) + 1, num_remove + 1):
        if dense_loss is None:
            dense_loss = fmean(scorer.losses(tuple(range(num_blocks))))
        candidates = tuple(keep[protect_first : len(keep) - protect_last])
        removal = verdict(step, dense_loss, dict(scorer.score_round(tuple(keep), candidates)))
        keep.remove(removal.block)
        yield removal
