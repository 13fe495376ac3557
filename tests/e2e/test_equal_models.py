"""Equal models read 1: the demo model against itself, by every way to compare models."""

from pathlib import Path

import pytest

from benchmarks.equal_models import INSTRUMENTS, subject

NUM_REQUESTS = 40
WITHIN = 0.05  # of 1; more than the benchmark allows, for a machine that runs other tests
WIDER = 2.0  # than an interval of 95 %, which misses 1 in one run of twenty


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_equal_models_read_1(demo_model_dir: Path) -> None:
    with subject(demo_model_dir, "bfloat16", NUM_REQUESTS, (32, 16), beside_job=False) as each:
        found = {name: measure(each) for name, measure in INSTRUMENTS.items()}
    for name, reading in found.items():
        off = abs(reading["ratio"] - 1)
        assert off <= WITHIN, (name, reading)
        assert off <= WIDER * (reading["high"] - reading["low"]) / 2, (name, reading)
