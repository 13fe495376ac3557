"""The choice of a repair: the best on its worst domain, and never one that harms a domain."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.removal import Losses
from pruning.repair.choose import choose, gains
from pruning.repair.record import Method
from pruning.repair.repair import Repaired, RepairedDepth

nats = st.floats(0, 20)
windows = st.lists(nats, min_size=3, max_size=3)
losses = st.fixed_dictionaries({"prose": windows, "code": windows})


def depth_of(**losses: Mapping[str, Losses]) -> RepairedDepth:
    tried = {Method(name): Repaired(Method(name), found) for name, found in losses.items()}
    return RepairedDepth((0, 2), tried)


def test_a_fit_on_one_domain_that_harms_another_is_refused() -> None:
    depth = depth_of(
        none={"prose": [math.log(55.5)], "code": [math.log(19.0)]},
        scale={"prose": [math.log(50.3)], "code": [math.log(17.2)]},
        ridge={"prose": [math.log(43.1)], "code": [math.log(29.6)]},
    )
    assert choose(depth).method is Method.SCALE
    both = {method: depth.tried[method].losses for method in (Method.NONE, Method.RIDGE)}
    assert choose(depth_of(none=both[Method.NONE], ridge=both[Method.RIDGE])).method is Method.NONE


def test_the_gain_is_paired_window_by_window() -> None:
    depth = depth_of(none={"prose": [4.0, 6.0]}, ridge={"prose": [3.0, 5.5]})
    gain = gains(depth, Method.RIDGE)["prose"]
    assert gain.mean == pytest.approx(0.75)
    assert gain.standard_error == pytest.approx(0.25)


@given(none=losses, scale=losses, ridge=losses)
def test_no_domain_is_worse_than_unrepaired(
    none: Mapping[str, Losses], scale: Mapping[str, Losses], ridge: Mapping[str, Losses]
) -> None:
    depth = depth_of(none=none, scale=scale, ridge=ridge)
    chosen = choose(depth)
    worst = {m: min(g.mean for g in gains(depth, m).values()) for m in depth.tried}
    assert all(gain.mean >= 0 for gain in gains(depth, chosen.method).values())
    assert worst[chosen.method] == max(0.0, *worst.values())


def test_a_loss_that_is_no_number_is_not_chosen() -> None:
    depth = depth_of(none={"prose": [4.0]}, ridge={"prose": [math.nan]})
    assert choose(depth).method is Method.NONE
