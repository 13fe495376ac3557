"""Cuts, and the steps past them."""

from hypothesis import given
from hypothesis import strategies as st

from pruning.repair.cuts import Cut, Refit, Run, Scale, cuts_of, route

NUM_BLOCKS = 9
keep_sets = st.sets(st.integers(0, NUM_BLOCKS - 1), min_size=1).map(lambda s: tuple(sorted(s)))


def test_cuts_are_where_blocks_are_missing() -> None:
    assert cuts_of((0, 1, 4, 5, 7), 9) == (Cut(1, 4), Cut(5, 7), Cut(7, 9))
    assert cuts_of((2, 3), 4) == ()


def test_a_route_has_the_steps_of_a_cut_in_place_of_the_block_in_front_of_it() -> None:
    steps = route((0, 2, 3), 4, lambda cut: [Run(cut.before), Scale(cut)])
    assert steps == (Run(0), Scale(Cut(0, 2)), Run(2), Run(3))
    assert route((0, 1, 2), 4, lambda cut: [Refit(cut)]) == (Run(0), Run(1), Refit(Cut(2, 4)))


@given(keep=keep_sets)
def test_every_kept_block_runs_once_in_order(keep: tuple[int, ...]) -> None:
    steps = route(keep, NUM_BLOCKS, lambda cut: [Refit(cut)])
    assert [s.block if isinstance(s, Run) else s.cut.before for s in steps] == list(keep)
