"""The healing benchmark on a tiny model: what its report has, and the share that came back."""

import json
from pathlib import Path

import pytest

from benchmarks import heal, heal_report


@pytest.mark.slow
def test_the_report_has_every_model_on_every_domain(tiny_model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "heal.json"
    heal.main(
        out,
        "3,1",
        model=str(tiny_model_dir),
        depths="2",
        num_tokens=640,
        batch_tokens=64,
        rank=2,
        seqlen=16,
        num_samples=4,
        num_held_out=2,
        num_items=2,
        sequences="1,2",
        threads=1,
    )
    report = json.loads(out.read_text())
    [depth] = report["depths"]
    assert set(depth["domains"]) == {"prose", "code", "documentation"}
    for models in depth["domains"].values():
        assert list(models) == ["dense", "raw", "repaired", "healed", "control"]
    assert depth["runs"]["healed"]["num_tokens"] == 640
    assert set(depth["probe"]) == {"dense", "raw", "repaired", "healed", "control"}
    sizes = depth["runs"]["healed"]["bytes"]
    assert sizes["optimizer"] == 2 * sizes["adapter"] > 0
    assert sizes["activations"] > 0
    assert [of["sequences"] for of in depth["serving"]["steps"]] == [1, 2]
    assert out.with_suffix(".png").stat().st_size > 0
    assert "Without 2 blocks" in out.with_suffix(".md").read_text()


def test_the_share_is_that_of_the_lost_nats() -> None:
    losses = {"dense": 2.0, "raw": 4.0, "repaired": 3.0, "healed": 2.5, "control": 2.0}
    models = {name: {"loss": loss, "standard_error": 0.1} for name, loss in losses.items()}
    rows = list(heal_report.lines({"domains": {"prose": models}}))
    assert [row[4] for row in rows] == ["", "", "50%", "75%", ""]
    assert rows[3][3] == "0.500 ± 0.100"
