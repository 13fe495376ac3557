"""The advice of the API and of the command line: of int8 and all jobs, by what was measured."""

import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.commands.models import catalog_of, print_advice
from app.config import ServeSettings
from app.models.candidates import NotDense
from app.models.measured_qualities import MeasuredQualities
from app.models.measured_speedups import ONE_STREAM, Measurand, MeasuredSpeedup, MeasuredSpeedups
from pruning.checkpoints.store import Manifest
from pruning.evaluation.limits import Limits
from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.quality import DomainQuality, Measured
from pruning.models.safetensors_headers import fingerprint
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair
from tests.support.api_fixtures import publish_pruned

LENIENT: dict[str, Any] = {"max_ratio": 1e6, "min_speedup": 1.0}
DEEPEST = Measurand(3)
INT8 = DomainQuality("prose", "a text", 8, 64, "d1g", Measured(3.0, 0.1), (Measured(3.006, 1e-4),))

PIQA = PairedTask("piqa", 0.5, 2000, both=1390, dense_only=10, own_only=0, neither=600)


@pytest.fixture
def manifest(data_dir: Path) -> Manifest:
    calibration = CalibrationSpec(Dataset.SELF, num_samples=6, seqlen=12)
    spec = PruneSpec("tiny", 3, calibration=calibration, repair=Repair.NONE)
    return publish_pruned(data_dir, spec=spec)


def measured(data_dir: Path, ratio: float, what: Measurand = DEEPEST) -> None:
    scenario = what.load or "generation"
    found = MeasuredSpeedup(ratio, ratio - 0.01, ratio + 0.01, scenario, time.time())
    MeasuredSpeedups(data_dir).record("tiny", {what: found})


def measured_int8(data_dir: Path) -> None:
    """As `sleb frontier` keeps it."""
    measured(data_dir, 1.77, Measurand(0, is_int8=True, load=ONE_STREAM))
    measured(data_dir, 1.05, Measurand(0, is_int8=True, load="32"))
    weights = fingerprint(data_dir / "models" / "tiny")
    MeasuredQualities(data_dir).record("tiny", weights, {"tiny+int8": (INT8,)})


def advice(client: TestClient, name: str = "tiny", **limits: float) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/models/{name}/advice", params=limits).json()
    return found


def test_int8_that_is_better_is_what_to_take(
    data_dir: Path, manifest: Manifest, client: TestClient
) -> None:
    measured(data_dir, 1.2, Measurand(3, load=ONE_STREAM))
    measured_int8(data_dir)
    found = advice(client, max_ratio=1e6)
    assert found["sentence"].startswith(
        "Take tiny+int8: 1.77 × as fast at one stream for 0.6 % more perplexity; no pruned depth"
    )
    assert found["loads"] == [
        {"name": "stream", "words": "at one stream", "taken": "tiny+int8"},
        {"name": "32", "words": "at 32 streams", "taken": None},
    ]
    assert (found["taken"], found["nearest"]) == ("tiny+int8", None)
    int8, *depths = found["depths"]
    assert (int8["name"], int8["is_int8"], int8["verdict"]) == ("tiny+int8", True, "kept")
    assert int8["speeds"].keys() == {"stream", "32"}
    assert int8["speedup"] == int8["speeds"]["stream"]
    assert not any(depth["is_int8"] for depth in depths)
    assert len(depths) == len(manifest.removed_blocks)


@pytest.mark.usefixtures("manifest")
def test_the_answer_begins_with_the_load_that_is_asked_for(
    data_dir: Path, client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    measured_int8(data_dir)
    found = client.get("/models/tiny/advice", params={"load": "32"}).json()
    assert found["sentence"].startswith("Do not prune this model at 32 streams. At one stream take")
    assert [load["name"] for load in found["loads"]] == ["32", "stream"]
    assert found["taken"] is None
    assert found["depths"][0]["speedup"]["value"] == 1.05
    print_advice(ServeSettings(data_dir=data_dir), "tiny", Limits(), "32", as_json=False)
    assert "Do not prune this model at 32 streams." in capsys.readouterr().out
    refused = client.get("/models/tiny/advice", params={"load": "64"})
    assert refused.status_code == 422
    assert "at the load 64; known loads: stream, 32. `sleb frontier` measures" in refused.text


@pytest.mark.usefixtures("manifest")
def test_tasks_are_named_and_have_a_limit(
    data_dir: Path, client: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    measured_int8(data_dir)
    weights, qualities = fingerprint(data_dir / "models" / "tiny"), MeasuredQualities(data_dir)
    qualities.record("tiny", weights, tasks={"tiny+int8": [PIQA]})
    found = advice(client, min_task_share=0.8)
    assert found["sentence"].startswith(
        "Take tiny+int8: 1.77 × as fast at one stream for 0.6 % more perplexity and 2.5 % of the "
        "task accuracy above chance; no pruned depth that costs at most 5 % and 20 % of the task"
    )
    int8, *depths = found["depths"]
    assert int8["tasks"]["share"]["value"] == pytest.approx(0.975)
    assert int8["tasks"]["worst_task"] == "piqa"
    assert int8["tasks"]["worst"] == int8["tasks"]["share"]
    of_piqa = int8["tasks"]["by_task"]["piqa"]
    assert (of_piqa["accuracy"], of_piqa["dense_accuracy"]) == (0.695, 0.7)
    assert (of_piqa["num_questions"], of_piqa["flips"], of_piqa["chance"]) == (2000, 0.005, 0.5)
    assert [depth["tasks"] for depth in depths] == [None] * 3
    assert found["limits"]["min_task_share"] == 0.8
    assert advice(client, min_task_share=0.99)["depths"][0]["failing"] == ["tasks"]
    assert client.get("/models/tiny/advice", params={"min_task_share": 1.5}).status_code == 422
    print_advice(ServeSettings(data_dir=data_dir), "tiny", Limits(), as_json=False)
    assert re.search(r"→ int8 .* 0\.97±\.0\d ", capsys.readouterr().out)


@pytest.mark.usefixtures("manifest")
def test_int8_that_was_not_measured_is_the_next_step(client: TestClient) -> None:
    found = advice(client, min_speedup=100)
    assert found["sentence"].startswith("Do not prune this model: no pruned depth")
    assert found["sentence"].endswith("Int8 weights are not measured yet.")
    assert found["next_step"]["command"] == "sleb frontier tiny --min-speedup 100"
    body = {"model": "tiny", "min_speedup": 100}
    assert found["next_step"]["request"] == {"method": "POST", "path": "/frontiers", "body": body}
    assert found["depths"][0]["name"] == "tiny+int8"
    assert found["depths"][0]["verdict"] == "undecided"


def requested(client: TestClient, step: dict[str, Any], **others: object) -> dict[str, Any]:
    """The answer to the request of a step."""
    request = step["request"]
    answer = client.request(request["method"], request["path"], json=request["body"] | others)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_the_next_step_is_a_request_too(data_dir: Path, client: TestClient) -> None:
    """Until it is done."""
    measured_int8(data_dir)
    prune = advice(client)["next_step"]
    assert prune["command"] == "sleb jobs submit tiny --num-remove 4"
    assert requested(client, prune, dry_run=True)["object"] == "prune_job.estimate"
    publish_pruned(data_dir)
    serve = advice(client)["next_step"]
    assert serve["command"] == "sleb models alias prod tiny+int8"
    assert requested(client, serve)["aliases"] == ["prod"]
    assert advice(client)["next_step"] is None
    measured(data_dir, 1.9, Measurand(3, load=ONE_STREAM))
    more = advice(client, **LENIENT)["next_step"]
    assert more["command"].endswith("--num-remove 3 --evaluation-max-seconds 600")
    assert requested(client, more, dry_run=True)["object"] == "prune_job.estimate"


@pytest.mark.usefixtures("manifest")
def test_what_a_shallower_second_job_does_not_have_is_still_taken(
    data_dir: Path, client: TestClient
) -> None:
    measured(data_dir, 1.7)
    calibration = CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=12)
    spec = PruneSpec("tiny", 1, calibration=calibration, repair=Repair.NONE)
    publish_pruned(data_dir, job="prn-2", spec=spec)
    found = advice(client, **LENIENT)
    assert found["taken"] == "tiny@prn-1"
    names = [depth["name"] for depth in found["depths"] if depth["num_removed"] > 1]
    assert names == ["tiny@prn-1-2", "tiny@prn-1"]


@pytest.mark.usefixtures("manifest")
@pytest.mark.parametrize("name", ["tiny+int8", "tiny@-1", "tiny@prn-1", "tiny@-1+int8"])
def test_of_a_variant_there_is_no_advice(data_dir: Path, client: TestClient, name: str) -> None:
    answer = client.get(f"/models/{name}/advice")
    assert answer.status_code == 422
    assert f"{name} is a variant: name the dense model" in answer.text
    settings = ServeSettings(data_dir=data_dir)
    with pytest.raises(NotDense, match="name the dense model"):
        print_advice(settings, name, Limits(), as_json=False)
    catalog_of(settings).set_alias("prod", name)
    assert advice(client, "prod")["model"] == "tiny", "an alias is a name for requests"


def test_checkpoints_without_their_dense_model_have_an_answer(
    data_dir: Path, manifest: Manifest, client: TestClient
) -> None:
    measured(data_dir, 1.7)
    shutil.rmtree(data_dir / "models" / "tiny")
    found = advice(client, **LENIENT)
    assert [depth["name"] for depth in found["depths"]] == [manifest.name]
    assert found["taken"] == manifest.name
    assert found["depths"][0]["is_measured"]
    assert found["next_step"]["command"] == "sleb models add SOURCE --name tiny"
    assert client.get("/models/other/advice").status_code == 404


def test_the_depths_are_judged_by_what_is_known(
    data_dir: Path, manifest: Manifest, client: TestClient
) -> None:
    measured(data_dir, 1.7)
    found = advice(client, **LENIENT)
    depths = found["depths"][1:]
    assert [depth["name"] for depth in depths] == ["tiny@-1", "tiny@-2", "tiny@-3"]
    deepest = depths[-1]
    assert (found["taken"], deepest["verdict"]) == ("tiny@-3", "kept")
    assert deepest["speedup"] == {"value": 1.7, "low": 1.69, "high": 1.71}
    assert deepest["is_measured"]
    assert not depths[0]["is_measured"]
    assert deepest["ratios"].keys() == {one.domain for one in manifest.quality.domains}
    assert found["sentence"].startswith("Take tiny@-3: 1.70 × as fast per token for ")
    assert client.get("/models/tiny/advice", params={"max_ratio": 0.5}).status_code == 422


@pytest.mark.usefixtures("manifest")
@pytest.mark.parametrize(("of_predicted", "expected"), [(0.5, 0.5), (-1, 0), (2, 1)])
def test_predictions_follow_what_other_depths_have_saved(
    data_dir: Path, client: TestClient, of_predicted: float, expected: float
) -> None:
    def saved() -> list[float]:
        depths = advice(client, **LENIENT)["depths"][1:]
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
    sentence = advice(client, **LENIENT)["sentence"]
    assert sentence in shown
    assert "→ @-3" in shown
    print_advice(settings, "tiny", Limits(1.0, 3.0), as_json=False)
    assert "no pruned depth that costs at most 0 %" in " ".join(capsys.readouterr().out.split())
