"""Healing over HTTP: of a published checkpoint, and as a part of a pruning job."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pruning.checkpoints.store import MANIFEST, CheckpointStore, Manifest
from pruning.worker.task import run_job
from tests.support.healing import NAME
from tests.support.prune_requests import JOB

pytestmark = pytest.mark.usefixtures("nothing_preloaded")

HEAL: dict[str, Any] = {
    "num_tokens": 640,
    "rank": 2,
    "batch_tokens": 64,
    "steps_per_check": 5,
    "control": False,
}


@pytest.fixture
def data_dir(pruned_data_dir: tuple[Path, Manifest], tmp_path: Path) -> Path:
    """With the checkpoint ``NAME`` of a tiny model."""
    shutil.copytree(pruned_data_dir[0], tmp_path / "data", ignore=shutil.ignore_patterns("*+*"))
    return tmp_path / "data"


@pytest.fixture
def _worker_settings(data_dir: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(data_dir))
    monkeypatch.setenv("SLEB_REDIS_URL", redis_url)


@pytest.mark.usefixtures("_worker_settings")
def test_a_published_checkpoint_is_healed_by_a_job_of_its_own(
    client: TestClient, data_dir: Path
) -> None:
    estimate = client.post("/heal-jobs", json={"model": NAME, "heal": HEAL, "dry_run": True})
    assert estimate.status_code == 200, estimate.text
    assert client.get("/prune-jobs").json()["data"] == []
    needed = estimate.json()
    assert (needed["num_tokens"], needed["control_tokens"]) == (HEAL["num_tokens"], 0)
    assert needed["estimated_s"] is None
    source = CheckpointStore(data_dir / "checkpoints").manifest(NAME)
    assert needed["checkpoint_bytes"] == source.disk_bytes + needed["adapter_bytes"]

    response = client.post("/heal-jobs", json={"model": NAME, "heal": HEAL, "priority": 3})
    assert response.status_code == 202, response.text
    job = response.json()
    assert response.headers["location"] == f"/prune-jobs/{job['id']}"
    assert (job["source"], job["model"], job["priority"]) == (NAME, "tiny", 3)
    assert job["spec"]["heal"].items() >= HEAL.items()
    run_job(job["id"])
    job = client.get(job["urls"]["self"]).json()
    assert job["status"] == "succeeded", job["error"]
    name = f"tiny@{job['id']}+healed"
    assert job["pruned_model"] == name
    assert job["heal_progress"]["num_tokens"] == HEAL["num_tokens"]
    assert job["heal_progress"]["held_out_loss"] > 0
    assert job["repair"]["is_healed"]
    again = client.post("/heal-jobs", json={"model": NAME, "heal": HEAL, "dry_run": True}).json()
    assert again["estimated_from"] == [job["id"]]
    assert again["estimated_s"] > 0
    assert CheckpointStore(data_dir / "checkpoints").names() == sorted([name, NAME])
    depths = [f"{name}-{number}" for number in range(1, len(source.removed_blocks) + 1)]
    for depth in (*depths, name):
        body = {"model": depth, "prompt": "the dog", "max_new_tokens": 1}
        assert client.post("/generate", json=body).status_code == 200
    [checkpoint] = client.get(job["urls"]["checkpoints"]).json()["data"]
    assert [prefix["model"] for prefix in checkpoint["prefixes"]] == depths
    urls = {file["name"]: file["url"] for file in checkpoint["files"]}
    adapter = client.get(urls["adapter/adapter_config.json"])
    assert adapter.json()["base_model_name_or_path"] == "tiny"
    assert client.delete(job["urls"]["self"]).status_code == 204
    assert CheckpointStore(data_dir / "checkpoints").names() == [NAME]


@pytest.mark.slow
@pytest.mark.usefixtures("_worker_settings")
def test_a_job_prunes_and_heals_on_text_of_the_dense_model(
    client: TestClient, data_dir: Path
) -> None:
    calibration = {"dataset": "self", "num_samples": 2, "seqlen": 16}
    heal = {**HEAL, "hidden_weight": 0.5}
    change = {"evaluate": False, "heal": heal, "calibration": calibration}
    response = client.post("/prune-jobs", json={**JOB, **change})
    assert response.status_code == 202, response.text
    job = response.json()
    run_job(job["id"])
    job = client.get(job["urls"]["self"]).json()
    assert job["status"] == "succeeded", job["error"]
    names = [f"tiny@{job['id']}", f"tiny@{job['id']}+healed"]
    assert job["pruned_model"] == names[1]
    found = client.get(job["urls"]["checkpoints"]).json()["data"]
    assert [checkpoint["id"] for checkpoint in found] == names
    checkpoints = CheckpointStore(data_dir / "checkpoints")
    assert set(names) < set(checkpoints.names())
    healing = checkpoints.manifest(names[1]).healing
    assert healing is not None
    assert [text.domain for text in healing.texts if text.part == "train"] == ["self"]
    assert healing.settings.hidden_weight == 0.5
    assert healing.run.best.loss < healing.run.checks[0].loss


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        ({"model": "tiny@missing"}, 404, "checkpoint-not-found"),
        ({"model": NAME, "heal": {"rank": 0}}, 422, "invalid-spec"),
        ({"model": NAME, "heal": {"epochs": 3}}, 422, "invalid-request"),
    ],
)
@pytest.mark.parametrize("is_dry", [False, True])
def test_what_cannot_be_healed_is_refused(
    client: TestClient, body: dict[str, Any], status: int, problem: str, is_dry: bool
) -> None:
    response = client.post("/heal-jobs", json={**body, "dry_run": is_dry})
    assert response.status_code == status
    assert problem in response.json()["type"]


def test_an_idempotency_key_creates_one_job(client: TestClient) -> None:
    headers = {"Idempotency-Key": "once"}
    answers = [client.post("/heal-jobs", json={"model": NAME}, headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert answers[1].json()["source"] == NAME
    assert answers[1].headers["Idempotent-Replayed"] == "true"


@pytest.mark.parametrize("is_dry", [True, False])
def test_a_checkpoint_whose_text_is_gone_is_refused(
    client: TestClient, data_dir: Path, is_dry: bool
) -> None:
    """The training reads it again, hours later."""
    file = data_dir / "checkpoints" / NAME / MANIFEST
    manifest = json.loads(file.read_text())
    manifest["spec"]["calibration"]["path"] = str(data_dir / "no-such-file.txt")
    file.write_text(json.dumps(manifest))
    refused = client.post("/heal-jobs", json={"model": NAME, "heal": HEAL, "dry_run": is_dry})
    assert refused.status_code == 422
    assert "no-such-file.txt" in refused.json()["detail"]
    assert client.get("/prune-jobs").json()["data"] == []
