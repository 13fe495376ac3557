"""The benchmarks run, on a tiny model; what they measure there means nothing."""

import json
import subprocess
import sys
from pathlib import Path

from tests.e2e.processes import environment


def test_the_search_benchmark_compares_plain_with_shared_prefixes(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    out = tmp_path / "search.json"
    command = [sys.executable, "-m", "benchmarks.search", "--model", str(tiny_model_dir)]
    command += ["--num-windows", "2", "--seqlen", "8", "--num-remove", "3", "--dtype", "float32"]
    root = Path(__file__).parents[1]
    subprocess.run([*command, "--out", str(out)], check=True, cwd=root, env=environment(tmp_path))
    report = json.loads(out.read_text())
    plain, exact = report["modes"]["plain"], report["modes"]["exact"]
    assert exact["order_equal_to_plain"]
    assert exact["block_passes"] < plain["block_passes"]
    assert plain["window_evaluations"] == 4 + 3 + 2
    assert plain["speedup_vs_plain"] == 1
    assert report["machine"]["torch_threads"] > 0
    assert "benchmarks.search" in report["command"]
