"""What an attack costs others: when its limits hold, and the table of them."""

from dataclasses import replace

import pytest

from benchmarks.liveness import Measured, Row, markdown

CALM = Measured([1.0, 2.0], [10.0, 20.0, 30.0], {})
ROW = Row("texts", CALM, Measured([3.0, 90.0], [50.0, 60.0, 70.0], {}), {"422": 5})


def test_the_limits_are_of_the_slowest_probe_and_of_the_median_request() -> None:
    assert ROW.ratio == pytest.approx(3.0)
    assert ROW.holds
    good = ROW.attacked
    for bad in (
        replace(good, probes_ms=[101.0]),
        replace(good, probes_ms=[]),
        replace(good, requests_ms=[61.0, 61.0]),
        replace(good, requests_ms=[]),
        replace(good, refused={"health 503": 1}),
    ):
        assert not replace(ROW, attacked=bad).holds


def test_the_table_has_a_row_for_each_attack() -> None:
    bad = replace(ROW, attacked=Measured([], [], {"no answer": 2}))
    text = markdown([ROW, bad])
    assert "| texts | 46 / 81 / 89 / 90 | 20 → 60 | 3.00 | yes |" in text
    assert "| texts | inf / inf / inf / inf | 20 → none | inf | no 2 × no answer |" in text
