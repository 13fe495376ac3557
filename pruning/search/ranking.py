"""Removal in the order of scores of the dense model (arXiv 2402.09025, section 3).

Metric 1 of the paper scores a block by how much it changes its input, metric 2 by the loss of the
dense model without it. The scores are measured once, so they ignore how removals affect each other,
and cost no more than the first round of ``sleb``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from statistics import fmean

from pruning.removal import Losses, NonFiniteLoss, Removal, kept
from pruning.sleb import Blocks, RoundScorer, sleb

# Yields ``(block, scores)`` of candidates, one score per window, in the model of the first blocks.
# The block with the lowest mean is removed first.
Rank = Callable[[Blocks, Blocks], Iterable[tuple[int, Losses]]]


def ranked(
    scorer: RoundScorer,
    rank: Rank,
    num_blocks: int,
    num_remove: int,
    *,
    protect_first: int = 1,
    protect_last: int = 1,
    removed: Sequence[int] = (),
    dense_loss: float | None = None,
) -> Iterator[Removal]:
    """Yield removals one by one, in the order that ``rank`` gives for the dense model.

    A removal has the scores and margins of the ranking, and the loss that ``scorer`` measures after
    it. Arguments and errors are those of ``sleb``.
    """
    keep = list(kept(num_blocks, removed))
    for choice in sleb(
        _Once(scorer, rank, tuple(range(num_blocks))),
        num_blocks,
        num_remove,
        protect_first=protect_first,
        protect_last=protect_last,
        removed=removed,
        dense_loss=dense_loss,
    ):
        [(_, losses)] = scorer.score_round(tuple(keep), (choice.block,))
        if not isfinite(loss := fmean(losses)):
            raise NonFiniteLoss(f"step {choice.step}: loss {loss} without block {choice.block}")
        keep.remove(choice.block)
        yield replace(choice, loss=loss)


@dataclass
class _Once:
    """A scorer that repeats the scores of the dense model in every round: ``sleb`` sorts them."""

    scorer: RoundScorer
    rank: Rank
    dense: Blocks
    scores: dict[int, Losses] = field(default_factory=dict)

    def losses(self, keep: Blocks) -> Losses:
        return self.scorer.losses(keep)

    def score_round(
        self,
        keep: Blocks,  # noqa: ARG002 - scores are those of the dense model
        candidates: Blocks,
    ) -> Iterator[tuple[int, Losses]]:
        if not self.scores:
            self.scores = dict(self.rank(self.dense, candidates))
        yield from ((block, self.scores[block]) for block in candidates)
