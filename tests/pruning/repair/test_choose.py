"""The choice of a repair: the best on its worst domain, and never one that harms a domain."""

import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruning.removal import Losses
from pruning.repair.order import choose, gains
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
        ridge={"prose": [math.log(43.1)], "code": [math.log(29.6)]},
    )
    assert choose(depth).method is Method.NONE


def test_the_gain_is_paired_window_by_window() -> None:
    depth = depth_of(none={"prose": [4.0, 6.0]}, ridge={"prose": [3.0, 5.5]})
    gain = gains(depth)["prose"]
    assert gain.mean == pytest.approx(0.75)
    assert gain.standard_error == pytest.approx(0.25)


@given(none=losses, ridge=losses)
def test_no_domain_is_worse_than_unrepaired(
    none: Mapping[str, Losses], ridge: Mapping[str, Losses]
) -> None:
    depth = depth_of(none=none, ridge=ridge)
    worst = min(gain.mean for gain in gains(depth).values())
    assert choose(depth).method is (Method.RIDGE if worst > 0 else Method.NONE)


@pytest.mark.parametrize("lost", ["prose", "code"])
def test_a_loss_that_is_no_number_is_not_chosen(lost: str) -> None:
    raw = {"prose": [4.0], "code": [4.0]}
    depth = depth_of(none=raw, ridge={"prose": [3.0], "code": [3.0], lost: [math.nan]})
    assert choose(depth).method is Method.NONE
