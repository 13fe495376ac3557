"""The benchmark for GPUs, on the CPU with tiny shapes: its report, and what it does on errors."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import PARTS, Run
from benchmarks.gpu.families import FAMILIES, compared
from benchmarks.gpu.plan import GpuPlan, small
from benchmarks.gpu.report import markdown
from pruning.models.architectures import ARCHITECTURES
from tests.support.families import EVERYWHERE
from tests.support.processes import environment

ROOT = Path(__file__).parents[2]
_FOR_EVER_S = math.inf


def run(plan: GpuPlan, *parts: str, ends_s: float = _FOR_EVER_S) -> Run:
    made = Run(plan, ends_s)
    for part in parts:
        made.part(part)
    return made


def test_steps_are_compared_with_the_time_to_read_all_weights() -> None:
    found = run(small("cpu"), "steps").found["steps"]
    assert [row["sequences"] for row in found["rows"]] == [1, 4]
    for row in found["rows"]:
        assert row["floor_ms"] == pytest.approx(1e3 * found["weight_bytes"] / found["bytes_per_s"])
        assert row["over_floor"] == pytest.approx(row["graphs_ms"] / row["floor_ms"])


def test_a_whole_search_is_extrapolated_from_its_first_round() -> None:
    plan = small("cpu")
    found = run(plan, "search").found["search"]["exact"]
    windows = plan.all_windows / plan.num_windows
    assert found["search_s"] > windows * plan.num_removed * found["round_s"]


def test_a_streamed_round_of_more_blocks_is_extrapolated_from_its_passes() -> None:
    found = run(small("cpu"), "stream").found["stream"]
    # Of 6 blocks, those behind the candidates 1 to 4; the first pass has computed the others.
    assert found["round_s"] / found["pass_s"] == pytest.approx(4 + 3 + 2 + 1)
    longest = max(12 * found["load_s"], 55 * found["pass_s"])  # 10 + 9 + ... + 1
    assert found["whole_round_s"] == pytest.approx(longest)


def test_a_part_that_fails_is_reported_and_the_next_one_runs() -> None:
    broken = replace(small("cpu"), num_windows=0)
    made = run(broken, "search", "steps")
    assert made.found.keys() == {"steps"}
    assert "Traceback" in made.problems["search"]


def test_no_part_begins_when_the_time_is_up() -> None:
    made = run(small("cpu"), "steps", ends_s=time.monotonic() - 1)
    assert made.found == {}
    assert made.problems == {"steps": "not begun, as the time was up"}


def test_every_family_that_quick_tests_run_is_compared() -> None:
    assert FAMILIES.keys() == EVERYWHERE <= ARCHITECTURES.keys()
    found = compared(small("cpu"), "llama", "float32")
    assert found["same"] == found["requests"] == 4
    assert found["replayed"] > found["recorded"] > 0


@pytest.mark.slow
def test_all_parts_are_one_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")]
    command += ["--device", "cpu", "--small"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert list(report["parts"]) == list(PARTS)
    assert report["problems"] == {}
    assert markdown(report) == (tmp_path / "out" / "gpu.md").read_text()
    assert all(
        of["same"] == of["requests"]
        for by_dtype in report["parts"]["families"].values()
        for of in by_dtype.values()
    )
