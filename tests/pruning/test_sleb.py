"""The search against a brute-force loop, with arbitrary losses of the kept blocks."""

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.removal import NonFiniteLoss, Removal, decide
from pruning.sleb import Blocks, TooManyRemovals, sleb
from pruning.spec.prune import PruneSpec
from tests.support.table_scorer import TableScorer, searches


def greedy_order(
    loss: Callable[[Blocks], float], num_blocks: int, num_remove: int, first: int, last: int
) -> list[int]:
    keep = list(range(num_blocks))
    order = []
    for _ in range(num_remove):
        best, best_loss = -1, math.inf
        for position in range(first, len(keep) - last):
            found = loss(tuple(keep[:position] + keep[position + 1 :]))
            if found < best_loss:
                best, best_loss = keep[position], found
        keep.remove(best)
        order.append(best)
    return order


@given(searches())
def test_order_is_that_of_the_exhaustive_greedy_loop(case: tuple[int, int, int, int, int]) -> None:
    seed, num_blocks, num_remove, first, last = case
    scorer = TableScorer(seed)
    found = list(sleb(scorer, num_blocks, num_remove, protect_first=first, protect_last=last))
    assert [removal.block for removal in found] == greedy_order(
        scorer.loss, num_blocks, num_remove, first, last
    )
    for removal in found:
        others = [loss for block, loss in removal.scores.items() if block != removal.block]
        assert removal.loss == min(removal.scores.values())
        assert removal.margin == (min(others) - removal.loss if others else None)


@given(searches(), st.data())
def test_a_resumed_search_goes_on_as_if_never_stopped(
    case: tuple[int, int, int, int, int], data: st.DataObject
) -> None:
    seed, num_blocks, num_remove, first, last = case
    search = partial(sleb, protect_first=first, protect_last=last)
    whole = list(search(TableScorer(seed), num_blocks, num_remove))
    cut = data.draw(st.integers(0, num_remove))
    removed = [removal.block for removal in whole[:cut]]
    dense_loss = whole[0].dense_loss if whole else None
    scorer = TableScorer(seed)
    rest = list(search(scorer, num_blocks, num_remove, removed=removed, dense_loss=dense_loss))
    assert whole[:cut] + rest == whole
    assert len(scorer.asked) == sum(len(removal.scores) for removal in rest)


def test_ties_go_to_the_lowest_index() -> None:
    order = [removal.block for removal in sleb(TableScorer(0, grid=1), 6, 3)]
    assert order == [1, 2, 3]


def test_a_search_that_stops_being_asked_does_no_more_work() -> None:
    scorer = TableScorer(0)
    search = sleb(scorer, 8, 6)
    next(search)
    assert len(scorer.asked) == 1 + 6  # the dense model and one round
    del search
    assert len(scorer.asked) == 7


@pytest.mark.parametrize(
    ("num_blocks", "num_remove", "first", "last"),
    [(6, 5, 1, 1), (2, 1, 1, 1), (6, 6, 0, 0), (3, 1, 9, 9), (6, -1, 1, 1), (6, 1, -1, 1)],
)
def test_impossible_searches_are_refused_before_any_evaluation(
    num_blocks: int, num_remove: int, first: int, last: int
) -> None:
    scorer = TableScorer(0)
    with pytest.raises(TooManyRemovals):
        next(sleb(scorer, num_blocks, num_remove, protect_first=first, protect_last=last))
    assert scorer.asked == []


@pytest.mark.parametrize("removed", [[0], [5], [9], [2, 2], [1, 0]])
def test_resuming_from_what_no_search_could_have_removed_is_refused(removed: list[int]) -> None:
    with pytest.raises(ValueError, match="cannot resume"):
        next(sleb(TableScorer(0), 6, 4, removed=removed))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_ends_the_search(bad: float) -> None:
    class Broken(TableScorer):
        def loss(self, keep: Blocks) -> float:
            return bad if 3 not in keep else 1.0

    with pytest.raises(NonFiniteLoss, match="step 1"):
        next(sleb(Broken(0), 6, 1))


def test_of_candidates_that_saw_less_none_goes_whatever_its_mean() -> None:
    found = decide(1, 1.0, {1: [0.5, 0.1], 2: [2.0, 3.0, 4.0], 3: [2.0, 3.0, 4.5]})
    assert (found.block, found.loss) == (2, 3.0)
    assert found.num_windows == {1: 2, 2: 3, 3: 3}


def test_the_margin_is_paired_and_so_is_its_error() -> None:
    """The difficulty of windows cancels: losses differ by up to 8, and gaps by up to 0.2 only."""
    found = decide(1, 1.0, {1: [1.1, 9.2, 5.3], 2: [1.0, 9.0, 5.0], 3: [4.0, 9.0, 9.0]})
    assert (found.block, found.runner_up) == (2, 1)
    assert found.margin == pytest.approx(0.2)
    assert found.margin_error == pytest.approx(0.1 / math.sqrt(3))


def test_the_runner_up_is_one_of_those_that_saw_the_most() -> None:
    losses = {1: [1.0] * 4, 2: [2.0, 2.5], 3: [1.0], 4: [3.0, 3.0]}
    found = decide(1, 1.0, losses)
    assert (found.block, found.runner_up, found.margin) == (1, 2, 1.25)


def test_one_window_has_a_margin_and_no_error_one_candidate_neither() -> None:
    found = decide(1, 1.0, {1: [2.0], 2: [2.5]})
    assert (found.runner_up, found.margin, found.margin_error) == (2, 0.5, None)
    alone = decide(1, 1.0, {4: [2.0, 3.0]})
    assert (alone.runner_up, alone.margin, alone.margin_error) == (None, None, None)


def test_every_round_takes_fewer_evaluations_and_the_total_is_known_before() -> None:
    found = list(sleb(TableScorer(1), 32, 7))
    assert sum(len(removal.scores) for removal in found) == 189
    spec = PruneSpec("any", num_remove=7)
    assert spec.num_evaluations(32) == 189
    assert spec.num_evaluations(32, num_removed=2) == 189 - 30 - 29
    assert isinstance(found[0], Removal)


def test_the_algorithm_needs_the_standard_library_alone() -> None:
    code = "import sys, pruning.sleb; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
