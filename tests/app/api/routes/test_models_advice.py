"""The advice of the API and of the command line: of the newest order, with measured speed-ups."""

import time
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from app.commands.models import print_advice
from app.config import ServeSettings
from app.models.measured_speedups import Measurand, MeasuredSpeedup, MeasuredSpeedups
from pruning.checkpoints.store import Manifest
from pruning.evaluation.advice import Limits
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair
from tests.support.api_fixtures import publish_pruned

LENIENT = {"max_ratio": 1e6, "min_speedup": 1.0}


@pytest.fixture
def manifest(data_dir: Path) -> Manifest:
    calibration = CalibrationSpec(Dataset.SELF, num_samples=6, seqlen=12)
    spec = PruneSpec("tiny", 3, calibration=calibration, repair=Repair.NONE)
    return publish_pruned(data_dir, spec=spec)


def measured(data_dir: Path, ratio: float) -> None:
    found = MeasuredSpeedup(ratio, ratio - 0.01, ratio + 0.01, 6, "generation", time.time())
    MeasuredSpeedups(data_dir).record("tiny", {Measurand(3): found})


def test_the_depths_of_the_newest_order_are_judged(
    data_dir: Path, manifest: Manifest, client: TestClient
) -> None:
    measured(data_dir, 1.7)
    advice = client.get("/models/tiny/advice", params=LENIENT).json()
    assert [depth["name"] for depth in advice["depths"]] == ["tiny@-1", "tiny@-2", "tiny@-3"]
    deepest = advice["depths"][-1]
    assert (advice["taken"], deepest["verdict"]) == ("tiny@-3", "kept")
    assert deepest["speedup"] == {"value": 1.7, "low": 1.69, "high": 1.71}
    assert deepest["is_measured"]
    assert not advice["depths"][0]["is_measured"]
    assert deepest["ratios"].keys() == {one.domain for one in manifest.quality.domains}
    assert advice["sentence"].startswith("Use tiny@-3: 1.70 × as fast per token (measured")
    strict = client.get("/models/tiny@-1/advice", params={"min_speedup": 2}).json()
    assert (strict["model"], strict["taken"]) == ("tiny", None)
    assert client.get("/models/other/advice").status_code == 404
    assert client.get("/models/tiny/advice", params={"max_ratio": 0.5}).status_code == 422


@pytest.mark.usefixtures("manifest")
@pytest.mark.parametrize(("of_predicted", "expected"), [(0.5, 0.5), (-1, 0), (2, 1)])
def test_predictions_follow_what_other_depths_have_saved(
    data_dir: Path, client: TestClient, of_predicted: float, expected: float
) -> None:
    def saved() -> list[float]:
        depths = client.get("/models/tiny/advice", params=LENIENT).json()["depths"]
        return [1 - 1 / depth["speedup"]["value"] for depth in depths]

    predicted = saved()
    measured(data_dir, 1 / (1 - of_predicted * predicted[2]))
    assert saved() == pytest.approx(
        [expected * predicted[0], expected * predicted[1], of_predicted * predicted[2]]
    )


@pytest.mark.usefixtures("manifest")
def test_the_command_line_says_the_same(
    data_dir: Path, client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(data_dir, 1.7)
    settings = ServeSettings(data_dir=data_dir)
    print_advice(settings, "tiny", Limits(1e6, 1.0), as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    sentence = client.get("/models/tiny/advice", params=LENIENT).json()["sentence"]
    assert sentence in shown
    assert "→ @-3" in shown
    print_advice(settings, "tiny", Limits(1.0, 3.0), as_json=False)
    assert "None of the 3 depths of tiny" in " ".join(capsys.readouterr().out.split())
