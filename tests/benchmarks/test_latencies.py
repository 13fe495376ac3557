"""Arithmetic of the serving benchmark: percentiles, times per token, ratios and targets."""

from statistics import fmean, quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.latencies import (
    Pass,
    RequestTiming,
    distribution,
    median_tpot_s,
    performance,
    rate,
    ratio,
)
from benchmarks.serve import TARGETS, all_ratios, is_met


def test_percentiles_of_known_numbers() -> None:
    hundred_and_one = distribution(range(101))
    assert hundred_and_one == {"mean": 50, "p50": 50, "p95": 95, "p99": 99}
    assert distribution([3.0, 1.0]) == {"mean": 2, "p50": 2, "p95": 2.9, "p99": 2.98}
    assert distribution([7.0]) == dict.fromkeys(("mean", "p50", "p95", "p99"), 7)
    assert distribution([]) is None


@given(st.lists(st.floats(0, 1e3), min_size=2, max_size=200))
def test_percentiles_are_those_of_the_standard_library(values: list[float]) -> None:
    hundredths = quantiles(values, n=100, method="inclusive")
    expected = [fmean(values), hundredths[49], hundredths[94], hundredths[98]]
    found = distribution(values)
    assert found is not None
    assert list(found) == ["mean", "p50", "p95", "p99"]
    assert list(found.values()) == pytest.approx(expected, abs=1e-6)


def test_latencies_of_one_answer() -> None:
    timing = RequestTiming(sent_s=10.0, received_s=(10.5, 10.75, 11.5), num_tokens=5)
    assert timing.ttft_s == 0.5
    assert timing.tpot_s == 0.25
    assert timing.gaps_s == [0.25, 0.75]
    single = RequestTiming(sent_s=0.0, received_s=(1.0,), num_tokens=1)
    assert single.tpot_s is None
    assert single.gaps_s == []


def passes(*seconds: float) -> list[Pass]:
    timings = (
        RequestTiming(0.0, (1.0, 2.0), 2),
        RequestTiming(0.0, (0.5, 3.5), 4),
        RequestTiming(0.0, (1.0,), 1),
    )
    return [Pass(duration_s, timings) for duration_s in seconds]


def test_a_rate_is_the_median_of_all_tokens_by_the_seconds_of_the_pass() -> None:
    assert rate(passes(7.0, 1.0, 2.0)) == 3.5
    found = performance(passes(7.0, 1.0, 2.0))
    assert (found["tokens_per_s"], found["requests"], found["tokens"]) == (3.5, 3, 7)
    assert found["seconds"] == [7, 1, 2]
    assert found["ttft_s"] == distribution([1.0, 0.5, 1.0])
    assert found["tpot_s"] == distribution([1.0, 1.0])
    assert found["itl_s"] == distribution(3 * [1.0, 3.0])
    assert median_tpot_s(passes(1.0)) == 1.0


def test_a_ratio_needs_both_sides() -> None:
    both = {"ours": passes(1.0), "theirs": passes(4.0)}
    assert ratio(both, "ours", "theirs") == 4
    assert ratio(both, "theirs", "ours") == 0.25
    assert ratio({"ours": passes(1.0)}, "ours", "theirs") is None


def test_every_ratio_is_there() -> None:
    ratios = all_ratios({"batch1_vs_floor": 1.23456})
    assert ratios.keys() == TARGETS.keys()
    assert ratios["batch1_vs_floor"] == 1.2346
    assert ratios["offline_vs_generate"] is None


def test_a_target_is_met_at_its_limit() -> None:
    assert [is_met(value, ("at least", 1.5)) for value in (1.4, 1.5, 1.6)] == [False, True, True]
    assert [is_met(value, ("at most", 1.5)) for value in (1.4, 1.5, 1.6)] == [True, True, False]
