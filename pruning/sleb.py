"""SLEB: greedy removal of redundant transformer blocks (arXiv 2402.09025, section 3).

Works on block indices. The scorer knows the model, the text, the device and the loss.
"""

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean
from typing import Protocol

from pruning.removal import Losses, Removal, decide

Blocks = tuple[int, ...]  # indices in the dense model, ascending


class SettingRefused(ValueError):
    """A setting cannot be used as it is; ``param`` is its dotted name in the request."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class TooManyRemovals(SettingRefused):
    """More blocks are to be removed than are unprotected."""


class RoundScorer(Protocol):
    def losses(self, keep: Blocks) -> Losses:
        """The losses of the model with exactly the blocks ``keep``."""

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterable[tuple[int, Losses]]:
        """Yield ``(block, losses of keep without it)`` for each candidate, in any order.

        A candidate that is clearly not the best may have losses of the first windows only.
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
    """Yield removals one by one: each is the block without which the loss is lowest.

    Candidates are the kept blocks except the first ``protect_first`` and the last ``protect_last``;
    ties go to the lowest index. With ``removed`` the search resumes after those blocks, and a given
    ``dense_loss`` is not measured again. Raises ``TooManyRemovals`` or ``ValueError`` before any
    evaluation, and ``NonFiniteLoss`` after one.
    """
    free = max(0, num_blocks - max(1, protect_first + protect_last))  # one block must stay
    if not len(removed) <= num_remove <= free or min(protect_first, protect_last) < 0:
        raise TooManyRemovals(
            "num_remove",
            f"cannot remove {num_remove} of {num_blocks} blocks: only {free} can be removed",
        )
    keep = list(range(num_blocks))
    for block in removed:
        if block not in keep[protect_first : len(keep) - protect_last]:
            raise ValueError(f"cannot resume from {list(removed)}: {block} was not a candidate")
        keep.remove(block)
    for step in range(len(removed) + 1, num_remove + 1):
        if dense_loss is None:
            dense_loss = fmean(scorer.losses(tuple(range(num_blocks))))
        candidates = tuple(keep[protect_first : len(keep) - protect_last])
        removal = decide(step, dense_loss, dict(scorer.score_round(tuple(keep), candidates)))
        keep.remove(removal.block)
        yield removal
