"""Arithmetic of the serving benchmark: percentiles, times per token, growth, arrivals."""

from itertools import pairwise
from statistics import fmean, quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.context_length import growth, markdown
from benchmarks.latencies import (
    Pass,
    RequestTiming,
    distribution,
    median_tpot_s,
    performance,
    rate,
    ratio,
)
from benchmarks.load import arrivals_s
from benchmarks.serve_report import TARGETS, all_ratios, is_met, target


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


def test_growth_along_a_line_deviates_from_nothing() -> None:
    found = growth(8, {1000: 0.012, 2000: 0.014, 4000: 0.018})
    assert found.base_ms == pytest.approx(10)
    assert found.slope_ms_per_1000 == pytest.approx(2)
    assert found.largest_deviation == pytest.approx(0, abs=1e-4)
    assert [point.ms_per_1000 for point in found.points] == [None, 2, 2]
    assert [point.ratio for point in found.points] == [None, 1.167, 1.286]
    assert [point.ms_per_token for point in found.points] == [1.5, 1.75, 2.25]
    table = markdown([found], "Cost").splitlines()
    assert "| 8 | 4000 | 18.00 | 2.25 | 1.29 | 2.00 |" in table
    assert any("10.00 ms + 2.00 ms per 1000" in line for line in table)


def test_growth_faster_than_a_line_shows() -> None:
    found = growth(1, {length: 1e-9 * length**2 for length in (1000, 2000, 4000, 8000)})
    slopes = [point.ms_per_1000 for point in found.points[1:]]
    assert slopes == [3, 6, 12]
    assert found.largest_deviation > 0.1


def test_arrivals_are_those_of_a_poisson_process() -> None:
    found = arrivals_s(2000, 4.0, seed=0)
    assert found[0] == 0
    assert found == sorted(found)
    gaps_s = [after - before for before, after in pairwise(found)]
    assert fmean(gaps_s) == pytest.approx(1 / 4, rel=0.1)
    assert fmean(gap_s**2 for gap_s in gaps_s) == pytest.approx(2 / 4**2, rel=0.2)
    assert found == arrivals_s(2000, 4.0, seed=0) != arrivals_s(2000, 4.0, seed=1)


def test_every_ratio_is_there_and_has_its_target() -> None:
    ratios = all_ratios({"pruned_speedup": 1.2, "pruned_speedup_bound": 1.23456})
    assert ratios.keys() == TARGETS.keys()
    assert ratios["pruned_speedup_bound"] == 1.2346
    assert ratios["offline_vs_generate"] is None
    assert target("pruned_speedup", ratios) == ("at least", 0.95 * 1.2346)
    assert target("weights_with_ten_variants", ratios) == ("at most", 1.05)
    assert target("pruned_speedup", all_ratios({})) is None


def test_a_target_is_met_at_its_limit() -> None:
    assert [is_met(value, ("at least", 1.5)) for value in (1.4, 1.5, 1.6)] == [False, True, True]
    assert [is_met(value, ("at most", 1.5)) for value in (1.4, 1.5, 1.6)] == [True, True, False]
