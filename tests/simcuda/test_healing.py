"""Healing on a simulated GPU: its losses, and what it holds of a card."""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from tests.simcuda.shapes import GIB, LLAMA_2_13B, LLAMA_3_8B


def healed(**asked: Any) -> Mapping[str, Any]:
    """What a training in a process of its own has found."""
    command = [sys.executable, "-m", "tests.support.simcuda.healing", json.dumps(asked)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    found: Mapping[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_training_is_that_of_the_cpu() -> None:
    found = healed()
    for part, expected in found["cpu"].items():
        assert found["cuda"][part] == pytest.approx(expected, rel=1e-3)
        assert found["cuda in bfloat16"][part] == pytest.approx(expected, rel=0.1)
    assert found["cpu"]["checks"][-1] < found["cpu"]["checks"][0]
    assert found["num_kernels"] > 1000
    assert found["bytes_of_other_card"] == 0


@pytest.mark.parametrize(
    ("shape", "gib", "seqlen"),
    [
        pytest.param(LLAMA_3_8B, 24, 2048, marks=pytest.mark.slow),
        pytest.param(LLAMA_3_8B, 24, 128, marks=pytest.mark.slow),
        pytest.param(LLAMA_3_8B, 80, 2048, marks=pytest.mark.slow),
        pytest.param(LLAMA_2_13B, 40, 2048, marks=pytest.mark.slow),
    ],
    ids=["8B on 24", "8B, short windows", "8B on 80", "13B on 40"],
)
def test_a_training_fits_the_card_that_has_the_model(
    shape: Mapping[str, Any], gib: int, seqlen: int
) -> None:
    found = healed(shape=dict(shape), gib=gib, seqlen=seqlen)
    assert found["weights"] < found["peak"] < gib * GIB
