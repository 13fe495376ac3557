"""The table of what neighbours cost: times of every situation in multiples of those alone."""

import pytest

from benchmarks.latencies import Pass, RequestTiming
from benchmarks.neighbours import ALONE, JOB, _by_size, markdown


def passes(*gaps_s: float) -> list[Pass]:
    """Passes of two requests of five tokens each, with these times between tokens."""
    return [
        Pass(1.0, (RequestTiming(0.0, tuple(gap * at for at in range(5)), 5),) * 2)
        for gap in gaps_s
    ]


def test_times_are_medians_in_multiples_of_those_alone() -> None:
    alone = {1: passes(0.01, 0.01, 0.5), 8: passes(0.02)}
    beside = {1: passes(0.03, 0.02, 0.02), 8: passes(0.08)}
    found = _by_size(alone, beside)
    assert found["1"]["median"] == pytest.approx(20)
    assert found["1"]["times_alone"] == pytest.approx(2)
    assert found["8"]["times_alone"] == found["8"]["p99_times_alone"] == pytest.approx(4)
    assert found["8"]["p99"] == pytest.approx(80)
    assert _by_size(alone, alone)["1"]["times_alone"] == 1


def test_the_table_has_a_row_for_each_situation_and_tells_of_the_job() -> None:
    alone, beside = ({1: passes(gap)} for gap in (0.01, 0.02))
    text = markdown(
        {
            "ms_per_token": {
                name: _by_size(alone, of) for name, of in ((ALONE, alone), (JOB, beside))
            },
            "job_evaluations_per_s": {ALONE: 3.0, "beside 32 sequences": 1.5},
        }
    )
    assert "|  | 1 at once |\n| --- | --: |\n" in text
    assert "| alone | 10.0 (1.00 ×), p99 10 |" in text
    assert "| one job | 20.0 (2.00 ×), p99 20 |" in text
    assert "3.00 candidates per second alone, and 1.50 beside 32 sequences: it takes 2.00" in text
