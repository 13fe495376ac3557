"""Removal by scores of the dense model, with arbitrary losses of the kept blocks."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.removal import Losses, Removal
from pruning.search.ranking import Rank, Ranking
from pruning.sleb import Blocks, RoundScorer, TooManyRemovals, sleb
from tests.support.table_scorer import TableScorer, searches

Case = tuple[int, int, int, int, int]


class Dissimilar:
    """A ranker with random scores for a few windows, which records its rounds."""

    def __init__(self, seed: int) -> None:
        self._table = TableScorer(seed)
        self.asked: list[tuple[Blocks, Blocks]] = []

    def score_round(self, keep: Blocks, candidates: Blocks) -> Iterator[tuple[int, Losses]]:
        self.asked.append((keep, candidates))
        for block in reversed(candidates):
            yield block, [self._table.loss((block, window)) for window in range(3)]


def ranked(
    scorer: RoundScorer, rank: Rank, num_blocks: int, num_remove: int, **how: Any
) -> Iterator[Removal]:
    ranking = Ranking(scorer, rank, tuple(range(num_blocks)))
    return sleb(ranking, num_blocks, num_remove, **how)


@given(searches())
def test_blocks_go_in_the_order_of_their_scores(case: Case) -> None:
    seed, num_blocks, num_remove, first, last = case
    scorer, ranker = TableScorer(seed), Dissimilar(seed + 1)
    run = partial(ranked, protect_first=first, protect_last=last)
    found = list(run(scorer, ranker.score_round, num_blocks, num_remove))
    free = range(first, num_blocks - last)
    scores = {b: math.fsum(ls) / 3 for b, ls in Dissimilar(seed + 1).score_round((), tuple(free))}
    order = sorted(free, key=lambda block: (scores[block], block))[:num_remove]
    assert [removal.block for removal in found] == order
    keep = list(range(num_blocks))
    for removal in found:
        others = {block: scores[block] for block in free if block in keep}
        assert removal.scores == pytest.approx(others)
        keep.remove(removal.block)
        assert removal.dense_loss == TableScorer(seed).loss(tuple(range(num_blocks)))
    assert ranker.asked == ([(tuple(range(num_blocks)), tuple(free))] if num_remove else [])


@given(searches())
def test_by_single_losses_the_first_removal_is_that_of_the_greedy_search(case: Case) -> None:
    seed, num_blocks, num_remove, first, last = case
    scorer = TableScorer(seed)
    run = partial(ranked, protect_first=first, protect_last=last)
    one_shot = list(run(scorer, scorer.score_round, num_blocks, num_remove))
    search = partial(sleb, protect_first=first, protect_last=last)
    greedy = list(search(TableScorer(seed), num_blocks, num_remove))
    assert one_shot[:1] == greedy[:1]
    assert len(one_shot) == len(greedy)


@given(searches(), st.data())
def test_a_resumed_ranking_goes_on_as_if_never_stopped(case: Case, data: st.DataObject) -> None:
    seed, num_blocks, num_remove, first, last = case
    run = partial(ranked, protect_first=first, protect_last=last)
    whole = list(run(TableScorer(seed), Dissimilar(seed).score_round, num_blocks, num_remove))
    cut = data.draw(st.integers(0, num_remove))
    removed = [removal.block for removal in whole[:cut]]
    dense_loss = whole[0].dense_loss if whole else None
    rest = list(
        run(
            TableScorer(seed),
            Dissimilar(seed).score_round,
            num_blocks,
            num_remove,
            removed=removed,
            dense_loss=dense_loss,
        )
    )
    assert whole[:cut] + rest == whole


def test_an_impossible_ranking_is_refused_before_any_work() -> None:
    scorer, ranker = TableScorer(0), Dissimilar(0)
    with pytest.raises(TooManyRemovals):
        next(ranked(scorer, ranker.score_round, 6, 5))
    assert (scorer.asked, ranker.asked) == ([], [])
