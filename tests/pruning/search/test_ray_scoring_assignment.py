"""The assignment of a round: complete, balanced, and at home where that costs nothing."""

from hypothesis import given
from hypothesis import strategies as st

from pruning.search.ray_scoring import assign

blocks = st.integers(0, 40)


@given(
    candidates=st.lists(blocks, unique=True),
    places=st.lists(st.integers(0, 9), unique=True, min_size=1, max_size=5),
    homes=st.dictionaries(blocks, st.integers(0, 9)),
    prices=st.lists(st.integers(1, 30), min_size=41, max_size=41),
    discount=st.integers(0, 9),
)
def test_every_candidate_once_and_no_handing_over_would_end_the_round_sooner(
    candidates: list[int],
    places: list[int],
    homes: dict[int, int],
    prices: list[int],
    discount: int,
) -> None:
    def cost(block: int, place: int) -> int:
        return max(1, prices[block] - discount * (homes.get(block) == place))

    shares = assign(candidates, places, homes, cost)
    assert sorted(shares) == sorted(places)
    assert sorted(block for share in shares.values() for block in share) == sorted(candidates)
    assert all(share == [b for b in candidates if b in share] for share in shares.values())
    loads = {place: sum(cost(b, place) for b in share) for place, share in shares.items()}
    busiest, idlest = max(places, key=loads.__getitem__), min(places, key=loads.__getitem__)
    for block in shares[busiest]:
        after = (loads[busiest] - cost(block, busiest), loads[idlest] + cost(block, idlest))
        assert max(after) >= loads[busiest]


def test_long_and_short_suffixes_are_mixed() -> None:
    shares = assign(range(1, 31), (0, 1, 2), {}, lambda block, _: 32 - block)
    loads = [sum(32 - block for block in share) for share in shares.values()]
    assert max(loads) - min(loads) <= 3
    assert {len(share) for share in shares.values()} == {10}


def test_blocks_stay_at_home_while_loads_are_even() -> None:
    homes = {1: 0, 2: 0, 3: 0, 4: 1, 5: 1, 6: 1}
    assert assign((6, 1, 5, 2, 4, 3), (0, 1), homes, lambda *_: 1) == {0: [1, 2, 3], 1: [6, 5, 4]}


def test_a_place_that_is_gone_is_no_home() -> None:
    homes = {1: 7, 2: 7, 3: 0, 4: 0}
    assert assign((1, 2, 3, 4), (0, 1), homes, lambda *_: 1) == {0: [3, 4], 1: [1, 2]}
