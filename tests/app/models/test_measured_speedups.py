"""Which measurement of a depth counts, where several were made."""

from pathlib import Path

import pytest

from app.models.measured_speedups import COMPARISON, MeasuredSpeedup, MeasuredSpeedups


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
    speedups.record("tiny", {1: KNOWN})
    speedups.record("tiny", {1: new, 2: new})
    assert speedups.of_model("tiny") == {1: new if is_kept else KNOWN, 2: new}


def test_a_benchmark_replaces_a_comparison(tmp_path: Path) -> None:
    speedups = MeasuredSpeedups(tmp_path)
    speedups.record("tiny", {1: measured(1.06, 1.05, 1.07, COMPARISON)})
    speedups.record("tiny", {1: KNOWN})
    assert speedups.of_model("tiny") == {1: KNOWN}
