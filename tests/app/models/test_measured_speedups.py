"""Which measurement of a depth counts, where several were made."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.models.measured_speedups import (
    COMPARISON,
    ONE_STREAM,
    Measurand,
    MeasuredSpeedup,
    MeasuredSpeedups,
)
from pruning.records import InvalidRecord


def measured(
    ratio: float, low: float | None, high: float | None, scenario: str = "served", blocks: int = 6
) -> MeasuredSpeedup:
    return MeasuredSpeedup(ratio, low, high, blocks, scenario, 1.0, 5)


KNOWN = measured(1.06, 1.03, 1.09)


@pytest.mark.parametrize(
    ("new", "is_kept"),
    [
        (measured(0.98, 0.0, 2.49), False),
        (measured(0.98, None, None), False),
        (measured(1.07, 1.03, 1.1), False),
        (measured(1.04, 1.02, 1.07), True),
        (measured(1.3, 1.2, 1.4), True),  # excludes what was known: something has changed
        (measured(1.06, 1.05, 1.07, COMPARISON), False),
        (measured(1.06, None, None, blocks=8), True),
    ],
    ids=["vague", "unknown", "wider", "narrower", "another", "a comparison", "another model"],
)
def test_what_is_known_better_stays(tmp_path: Path, new: MeasuredSpeedup, is_kept: bool) -> None:
    speedups = MeasuredSpeedups(tmp_path)
    speedups.record("tiny", {Measurand(1): KNOWN})
    speedups.record("tiny", {Measurand(1): new, Measurand(2): new})
    assert speedups.of_model("tiny") == {Measurand(1): new if is_kept else KNOWN, Measurand(2): new}


def test_a_benchmark_replaces_a_comparison(tmp_path: Path) -> None:
    speedups = MeasuredSpeedups(tmp_path)
    speedups.record("tiny", {Measurand(1): measured(1.06, 1.05, 1.07, COMPARISON)})
    speedups.record("tiny", {Measurand(1): KNOWN})
    assert speedups.of_model("tiny") == {Measurand(1): KNOWN}


def test_weights_and_loads_are_known_apart(tmp_path: Path) -> None:
    speedups = MeasuredSpeedups(tmp_path)
    one, many, plain = (measured(ratio, ratio, ratio) for ratio in (1.8, 1.1, 1.06))
    int8 = Measurand(0, is_int8=True)
    stream = replace(int8, load=ONE_STREAM)
    speedups.record("tiny", {int8: many, Measurand(3): plain})
    assert speedups.of("tiny", 6, 0, is_int8=True) == many
    speedups.record("tiny", {stream: one})
    again = MeasuredSpeedups(tmp_path)
    assert again.of("tiny", 6, 0, is_int8=True) == one, "one stream before a load without a name"
    assert again.at("tiny", 6, int8) == many
    assert again.of("tiny", 6, 3) == plain
    assert again.of("tiny", 6, 3, is_int8=True) is None
    assert {str(what) for what in again.of_model("tiny")} == {"0+int8", "0+int8 stream", "3"}


@pytest.mark.parametrize("key", ["", "x", "-1", "3 ", "3+int4"])
def test_a_key_that_names_nothing_is_refused(key: str) -> None:
    with pytest.raises(InvalidRecord, match="is no depth"):
        Measurand.parse(key)
