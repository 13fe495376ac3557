"""The benchmark for GPUs runs on a simulated one, so that a card's first minutes are not lost."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import PARTS, Run
from benchmarks.gpu.plan import small
from tests.support.processes import environment
from tests.support.simcuda.device import SimulatedCuda

ROOT = Path(__file__).parents[2]


def test_one_part_leaves_the_card_to_the_next_sizes(cuda: SimulatedCuda) -> None:
    """An engine beside others takes what its requests need, not a share of the memory."""
    made = Run(small("cuda"), math.inf)
    cuda.reset_peak()
    made.part("steps")
    assert made.problems == {}
    assert [row["sequences"] for row in made.found["steps"]["rows"]] == [1, 4]
    assert cuda.num_replays > cuda.num_captures > 0
    assert cuda.peak_bytes() < 2**32


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_parts_run_to_their_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.simcuda.gpu_benchmark", "--small"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--minutes", "60"],
        cwd=ROOT,
        env={**environment(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert list(report["parts"]) == list(PARTS)
    assert report["problems"] == {}
    for family, by_dtype in report["parts"]["families"].items():
        for of in by_dtype.values():
            assert of["same"] == of["requests"], family
