"""Removal in the order of scores of the dense model (arXiv 2402.09025, section 3).

Metric 1 of the paper scores a block by how much it changes its input, metric 2 by the loss of the
dense model without it. The scores are measured once, so they ignore how removals affect each other,
and cost no more than the first round of ``sleb``.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import isfinite
from statistics import fmean
from typing import Protocol

from pruning.removal import Losses, NonFiniteLoss, Removal, kept
from pruning.sleb import Blocks, RoundScorer, sleb


class Ranker(Protocol):
    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterable[tuple[int, Losses]]:
        """Yield ``(block, scores)``, one score per window, in the model of the blocks ``keep``.

        The block with the lowest mean is removed first.
        """


def ranked(
    scorer: RoundScorer,
    ranker: Ranker,
    num_blocks: int,
    num_remove: int,
    *,
    protect_first: int = 1,
    protect_last: int = 1,
    removed: Sequence[int] = (),
    dense_loss: float | None = None,
) -> Iterator[Removal]:
    """Yield removals one by one, in the order that ``ranker`` gives for the dense model.

    A removal has the scores and margins of the ranking, and the loss that ``scorer`` measures after
    it. Arguments and errors are those of ``sleb``.
    """
    keep = list(kept(num_blocks, removed))
    for choice in sleb(
        _Once(scorer, ranker, tuple(range(num_blocks))),
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


class _Once:
    """A scorer that repeats the scores of the dense model in every round: ``sleb`` sorts them."""

    def __init__(self, scorer: RoundScorer, ranker: Ranker, dense: Blocks) -> None:
        self._scorer = scorer
        self._ranker = ranker
        self._dense = dense
        self._scores: dict[int, Losses] = {}

    def losses(self, keep: Blocks) -> Losses:
        return self._scorer.losses(keep)

    def score_round(
        self,
        keep: Blocks,  # noqa: ARG002 - scores are those of the dense model
        candidates: Blocks,
    ) -> Iterator[tuple[int, Losses]]:
        if not self._scores:
            self._scores = dict(self._ranker.score_round(self._dense, candidates))
        yield from ((block, self._scores[block]) for block in candidates)
