"""The benchmarks of the search on tiny models. Only their bookkeeping is tested."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks.search import Dtype, main
from tests.support.processes import environment

CANDIDATES = 4 + 3 + 2  # of three rounds on a model of six blocks
WINDOWS = 24


def run(out: Path, modes: str, **options: Any) -> dict[str, Any]:
    given = {"num_windows": WINDOWS, "seqlen": 8, "num_remove": 3, "dtype": Dtype.FLOAT32}
    main(out=out, modes=modes, **{**given, **options})
    report: dict[str, Any] = json.loads(out.read_text())
    return report


@pytest.fixture(scope="module")
def of_all_modes(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("benchmark") / "search.json"
    return run(out, "stream,staged,exact,plain", model=str(tiny_model_dir))


def test_every_mode_finds_the_same_order(of_all_modes: dict[str, Any]) -> None:
    modes = of_all_modes["modes"]
    assert list(modes) == ["plain", "exact", "staged", "stream"]
    for found in modes.values():
        assert found["order"] == modes["plain"]["order"]
        assert len(found["losses"]) == len(found["rounds"]) == 3
        assert found["order_equal_to_plain"] is found["order_equal_to_exact"] is True
        assert found["order_equal_to_reference"] is None
        assert found["largest_loss_difference_to_plain"] < 1e-5
        assert found["seconds"] > 0


def test_work_is_counted_in_passes_of_all_windows(of_all_modes: dict[str, Any]) -> None:
    modes = of_all_modes["modes"]
    dense, rounds = 6, 4 * 5 + 3 * 4 + 2 * 3
    assert modes["plain"]["block_passes"] == dense + rounds
    assert modes["exact"]["block_passes"] == modes["stream"]["block_passes"] < dense + rounds
    assert modes["staged"]["block_passes"] <= modes["exact"]["block_passes"]


def test_windows_scored_are_counted_for_every_candidate(of_all_modes: dict[str, Any]) -> None:
    modes = of_all_modes["modes"]
    for name in ("plain", "exact", "stream"):
        assert modes[name]["window_evaluations"] == CANDIDATES * WINDOWS
    assert modes["staged"]["window_evaluations"] <= CANDIDATES * WINDOWS
    first = modes["staged"]["rounds"][0]
    assert set(first["num_windows"].values()) <= {8, 16, 24}
    assert first["margin"] > 0
    assert first["margin_error"] > 0


def test_memory_is_told_apart(of_all_modes: dict[str, Any]) -> None:
    modes, whole = of_all_modes["modes"], of_all_modes["weight_bytes"]
    for name in ("plain", "exact", "staged"):
        assert modes[name]["peak_weight_bytes"] == whole
    assert 0 < modes["stream"]["peak_weight_bytes"] < whole / 2
    assert modes["plain"]["peak_state_bytes"] == 0
    trunk = 6 * WINDOWS * 8 * 32 * 4
    assert modes["exact"]["peak_state_bytes"] > trunk
    assert modes["stream"]["peak_state_bytes"] > trunk


def test_the_reference_file_is_the_truth(tiny_model_dir: Path, tmp_path: Path) -> None:
    token_ids = [[(7 * row + 3 * column) % 90 for column in range(8)] for row in range(4)]
    truth = {"input_ids": token_ids, "removal_order": [], "scores": []}
    reference = tmp_path / "reference.json"
    reference.write_text(json.dumps(truth))
    options = {"model": str(tiny_model_dir), "reference": reference, "num_remove": 2}
    plain = run(tmp_path / "plain.json", "plain", **options)["modes"]["plain"]
    scores = [{**each["scores"]} for each in plain["rounds"]]
    scores[0]["1"] += 0.5
    reference.write_text(json.dumps({**truth, "removal_order": plain["order"], "scores": scores}))
    exact = run(tmp_path / "exact.json", "exact", **options)["modes"]["exact"]
    assert exact["order_equal_to_reference"] is True
    assert exact["largest_loss_difference_to_reference"] == pytest.approx(0.5, abs=1e-5)
    assert exact["window_evaluations"] == (4 + 3) * 4


def test_what_cannot_be_measured_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    out, model = tmp_path / "search.json", str(tiny_model_dir)
    with pytest.raises(typer.BadParameter, match=r"unknown \['fast'\]"):
        run(out, "exact,fast", model=model)
    with pytest.raises(typer.BadParameter, match="1 to 4"):
        run(out, "exact", model=model, num_remove=5)


@pytest.mark.slow
def test_the_search_benchmark_is_a_command(tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "search.json"
    command = [sys.executable, "-m", "benchmarks.search", "--model", str(tiny_model_dir)]
    command += ["--num-windows", "2", "--seqlen", "8", "--num-remove", "1", "--dtype", "float32"]
    command += ["--modes", "exact,stream", "--out", str(out)]
    root = Path(__file__).parents[2]
    subprocess.run(command, check=True, cwd=root, env=environment(tmp_path))
    report = json.loads(out.read_text())
    assert report["modes"]["stream"]["order_equal_to_exact"]
    assert report["machine"]["torch_threads"] > 0
    assert "benchmarks.search" in report["command"]
