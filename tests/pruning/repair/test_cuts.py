"""Cuts, and the steps past them."""

from hypothesis import given
from hypothesis import strategies as st

from pruning.repair.plan import Cut, Refit, Run, cuts_of, refitted, unrepaired

NUM_BLOCKS = 9
keep_sets = st.sets(st.integers(0, NUM_BLOCKS - 1), min_size=1).map(lambda s: tuple(sorted(s)))


def test_cuts_are_where_blocks_are_missing() -> None:
    assert cuts_of((0, 1, 4, 5, 7), 9) == (Cut(1, 4), Cut(5, 7), Cut(7, 9))
    assert cuts_of((2, 3), 4) == ()


def test_a_route_has_a_step_at_each_cut() -> None:
    keep = (0, 2, 3, 4, 5, 7)
    runs = [Run(block) for block in keep]
    assert unrepaired(keep, 9) == tuple(runs)
    assert refitted(keep, 9, 0) == (Refit(0, 2), *runs[1:4], Refit(5, 7), Refit(7, 9))
    behind = (Refit(0, 2), Refit(2, 3), Run(3), Run(4), Refit(5, 7), Refit(7, 9))
    assert refitted(keep, 9, 1) == behind
    assert refitted((0, 2, 3, 4), 5, 2) == (Refit(0, 2), Refit(2, 3), Refit(3, 4), Run(4))


@given(keep=keep_sets, num_behind=st.integers(0, 3))
def test_every_kept_block_runs_once_in_order(keep: tuple[int, ...], num_behind: int) -> None:
    steps = refitted(keep, NUM_BLOCKS, num_behind)
    assert [step.block for step in steps] == list(keep)
