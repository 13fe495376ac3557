"""Block visits: every stream runs its blocks once, in order, and no cut is repaired too early."""

from hypothesis import given
from hypothesis import strategies as st

from pruning.repair.cuts import Cut, cuts_of, visits

NUM_BLOCKS = 9
keep_sets = st.sets(st.integers(0, NUM_BLOCKS - 1), min_size=1).map(lambda s: tuple(sorted(s)))


def test_cuts_are_where_blocks_are_missing() -> None:
    assert cuts_of((0, 1, 4, 5, 7), 9) == (Cut(1, 4), Cut(5, 7), Cut(7, 9))
    assert cuts_of((2, 3), 4) == ()


@given(keeps=st.lists(keep_sets, min_size=1, max_size=4))
def test_every_stream_runs_its_blocks_in_order(keeps: list[tuple[int, ...]]) -> None:
    plan = list(visits(keeps, NUM_BLOCKS))
    assert [visit.block for visit in plan if visit.runs_dense] == list(range(NUM_BLOCKS))
    for at, keep in enumerate(keeps):
        cuts = cuts_of(keep, NUM_BLOCKS)
        own = [v.block for v in plan if at in v.passing or at in v.cutting]
        first = cuts[0].before if cuts else NUM_BLOCKS
        assert own == [block for block in keep if block >= first]
        num_dense = 0
        for visit in plan:
            num_dense += visit.runs_dense
            if at in visit.cutting:
                assert Cut(visit.block, num_dense) in cuts
