"""The benchmark of equal models: its verdict, and the number of pairs of each instrument."""

from pathlib import Path

import pytest

from benchmarks.equal_models import INSTRUMENTS, judged, subject


@pytest.mark.parametrize(
    ("reading", "beside_job", "passes"),
    [
        ((0.99, 1.01, 1.03), False, True),
        ((1.005, 1.01, 1.015), False, False),  # the interval does not contain 1
        ((0.95, 1.03, 1.11), False, False),  # the centre is too far away
        ((0.95, 1.03, 1.11), True, True),
    ],
)
def test_the_promise_is_an_interval_with_1_and_a_centre_near_it(
    reading: tuple[float, float, float], beside_job: bool, passes: bool
) -> None:
    good = {"low": 0.99, "ratio": 1.0, "high": 1.01}
    bad = dict(zip(("low", "ratio", "high"), reading, strict=True))
    found = judged({"compare": good, "shadow": bad}, beside_job=beside_job)
    assert found["passes"] is passes
    assert found["equal_models"]["shadow"]["passes"] is passes
    assert found["equal_models"]["compare"]["passes"] is True


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_instrument_measures_as_many_pairs_as_it_is_asked_for(tiny_model_dir: Path) -> None:
    with subject(tiny_model_dir, "float32", 4, (8, 6), beside_job=False) as each:
        found = {name: measure(each) for name, measure in INSTRUMENTS.items()}
    numbers = {name: reading["num_pairs"] for name, reading in found.items()}
    assert numbers == {"shadow": 4, "compare": 4, "bench": 2}  # of two requests each
    assert all(each["low"] <= each["ratio"] <= each["high"] for each in found.values())
