"""Removal in the order of scores that were measured once, on the dense model: what the paper
compares the search of ``sleb.py`` with (arXiv 2402.09025, section 3).

Metric 1 scores a block by what it changes, metric 2 by what the dense model loses without it. Both
know nothing of what blocks do for each other, and are as cheap as the first round of the search.
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
        """Yield ``(block, its scores in the model of keep, one per window)``: the lowest goes."""


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
    """Yield one removal after the other, as ``sleb`` does, by what ``ranker`` says once.

    A removal has the scores and margins of the ranking, and the loss that ``scorer`` measures after
    it. Settings and errors are those of ``sleb``.
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
    """A scorer whose every round repeats what was said of the dense model: a greedy search on it
    sorts.
    """

    def __init__(self, scorer: RoundScorer, ranker: Ranker, dense: Blocks) -> None:
        self._scorer = scorer
        self._ranker = ranker
        self._dense = dense
        self._scores: dict[int, Losses] = {}

    def losses(self, keep: Blocks) -> Losses:
        return self._scorer.losses(keep)

    def score_round(
        self,
        keep: Blocks,  # noqa: ARG002 - what has gone since makes no difference
        candidates: Blocks,
    ) -> Iterator[tuple[int, Losses]]:
        if not self._scores:
            self._scores = dict(self._ranker.score_round(self._dense, candidates))
        yield from ((block, self._scores[block]) for block in candidates)
