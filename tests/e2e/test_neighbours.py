"""The benchmark of neighbours on the demo model, whole, with few tokens."""

import json
from pathlib import Path

import pytest

from benchmarks import neighbours
from benchmarks.neighbours import ALONE, HALF, JOB


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_situation_is_measured_and_leaves_no_process(
    demo_data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(demo_data_dir))
    monkeypatch.setattr(neighbours, "_JOB_S", 10.0)
    out = tmp_path / "found" / "neighbours.json"
    neighbours.main(out, sizes="1,2", neighbours="1", output_len=4, repeats=1)
    report = json.loads(out.read_text())
    assert report["ms_per_token"].keys() == {ALONE, JOB, "1 busy", HALF}
    assert all(of.keys() == {"1", "2"} for of in report["ms_per_token"].values())
    assert all(rate > 0 for rate in report["job_evaluations_per_s"].values())
    assert out.with_suffix(".md").read_text().startswith("# Neighbours")
