"""What a job has published, over HTTP: listed, downloaded as it is, and nothing else."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app.models.measured_speedups import Measurand, MeasuredSpeedup, MeasuredSpeedups
from pruning.checkpoints.store import CheckpointStore, verify
from pruning.jobs.store import JobStore
from pruning.models.store import load
from pruning.spec.prune import Repair
from tests.support.api_fixtures import publish_pruned
from tests.support.prune_requests import submit

pytestmark = pytest.mark.usefixtures("nothing_preloaded")


@pytest.fixture
def job(client: TestClient, data_dir: Path, job_store: JobStore) -> dict[str, Any]:
    """That has removed three blocks and succeeded."""
    submitted = submit(client)
    job_store.start(submitted["id"], "w")
    manifest = publish_pruned(data_dir, job=submitted["id"], repair=Repair.RIDGE)
    job_store.succeed(submitted["id"], manifest.name)
    return submitted


SPEEDUP: dict[str, Any] = {"ratio": 1.2, "low": 1.1, "high": 1.3, "scenario": "served"}


def checkpoint_of(client: TestClient, job: dict[str, Any]) -> dict[str, Any]:
    [checkpoint] = client.get(job["urls"]["checkpoints"]).json()["data"]
    assert isinstance(checkpoint, dict)
    return checkpoint


def test_there_is_none_before_it_is_published(client: TestClient) -> None:
    answer = client.get(submit(client)["urls"]["checkpoints"])
    assert answer.status_code == 200
    assert answer.json() == {"object": "list", "data": []}


def test_the_list_names_files_and_prefixes(
    client: TestClient, job: dict[str, Any], data_dir: Path
) -> None:
    found = MeasuredSpeedup(**SPEEDUP, measured_at=1.0)
    MeasuredSpeedups(data_dir).record("tiny", {Measurand(2): found})
    checkpoint = checkpoint_of(client, job)
    name = f"tiny@{job['id']}"
    assert (checkpoint["id"], checkpoint["num_blocks"]) == (name, 3)
    assert len(checkpoint["removed_blocks"]) == 3
    assert checkpoint["is_published"]
    manifest = CheckpointStore(data_dir / "checkpoints").manifest(name)
    assert checkpoint["evaluated_on"] == manifest.quality.evaluated_on
    assert checkpoint["prefixes"] == [
        {
            "model": f"{name}-{k}",
            "num_removed": k,
            "removed_block": manifest.removed_blocks[k - 1],
            "loss": manifest.quality.losses[k],
            "perplexity": manifest.quality.perplexities[k],
            "repair": {
                "method": repair.method,
                "bytes": repair.num_bytes,
                "raw": f"{name}-{k}+raw",
                "shared_bytes": 0,
                "is_healed": False,
            },
            "domains": client.get(f"/models/{name}-{k}").json()["domains"],
            "predicted_speedup": manifest.predicted_speedup(k),
            "measured_speedup": {**SPEEDUP, "measured_at": 1.0} if k == 2 else None,
        }
        for k, repair in enumerate(manifest.repair or (), start=1)
    ]
    assert len(checkpoint["prefixes"]) == 3
    for prefix in checkpoint["prefixes"]:
        body = {"model": prefix["model"], "prompt": "the dog", "max_new_tokens": 1}
        assert client.post("/generate", json=body).status_code == 200
    directory = CheckpointStore(data_dir / "checkpoints").path(name)
    sizes = {
        str(path.relative_to(directory)): path.stat().st_size
        for path in directory.rglob("*")
        if path.is_file()
    }
    assert {file["name"]: file["num_bytes"] for file in checkpoint["files"]} == sizes
    assert {"model.safetensors", "manifest.json", "repair/depth-3.safetensors"} <= set(sizes)


def test_the_job_has_the_quality_of_its_published_model(
    client: TestClient, job: dict[str, Any], data_dir: Path
) -> None:
    def shown(of_job: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = client.get(of_job["urls"]["self"]).json()
        return found

    *_, whole = checkpoint_of(client, job)["prefixes"]
    found = shown(job)
    assert found["domains"] == whole["domains"]
    assert {domain["domain"] for domain in found["domains"]} >= {"prose", "code", "documentation"}
    assert found["repair"] == {**whole["repair"], "raw": f"tiny@{job['id']}+raw"}
    assert client.get("/prune-jobs").json()["data"] == [found]
    waiting = shown(submit(client))
    assert (waiting["domains"], waiting["repair"]) == ([], None)
    shutil.rmtree(data_dir / "checkpoints" / found["pruned_model"])
    deleted = shown(job)
    assert (deleted["domains"], deleted["repair"]) == ([], None)


def test_without_its_dense_parent_only_the_whole_is_servable(
    client: TestClient, job: dict[str, Any], data_dir: Path
) -> None:
    (data_dir / "models" / "tiny").rename(data_dir / "away")
    [prefix] = checkpoint_of(client, job)["prefixes"]
    assert prefix["model"] == f"tiny@{job['id']}-3"


def test_what_is_downloaded_is_the_checkpoint(
    client: TestClient, job: dict[str, Any], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in checkpoint_of(client, job)["files"]:
        answer = client.get(file["url"])
        assert answer.status_code == 200
        assert hashlib.sha256(answer.content).hexdigest() == file["sha256"]
        assert answer.headers["etag"] == f'"{file["sha256"]}"'
        assert int(answer.headers["content-length"]) == file["num_bytes"]
        target = copy / file["name"]
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(answer.content)
    assert verify(copy).repair is not None
    assert load(copy).model.config.num_hidden_layers == 3


def test_a_file_that_is_known_is_not_sent_and_a_part_can_be(
    client: TestClient, job: dict[str, Any]
) -> None:
    url = f"{job['urls']['checkpoints']}/model.safetensors"
    whole = client.get(url)
    known = client.get(url, headers={"If-None-Match": f'"x", {whole.headers["etag"]}'})
    assert (known.status_code, known.content) == (304, b"")
    part = client.get(url, headers={"Range": "bytes=8-15"})
    assert (part.status_code, part.content) == (206, whole.content[8:16])


@pytest.mark.parametrize(
    ("range_", "status"),
    [
        ("bytes=", 400),
        ("bytes=-", 400),
        ("bytes=a-b", 400),
        ("bytes=9-8", 400),
        ("lines=1-2", 400),
        ("bytes", 400),
        ("bytes=999999999-", 416),
        ("bytes=-0", 416),
        ("bytes=0-1,999999999-", 416),
    ],
)
def test_a_range_that_cannot_be_served_is_a_problem(
    client: TestClient, job: dict[str, Any], range_: str, status: int
) -> None:
    url = f"{job['urls']['checkpoints']}/model.safetensors"
    answer = client.get(url, headers={"Range": range_})
    assert answer.status_code == answer.json()["status"] == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
    size = client.get(url).headers["content-length"]
    assert answer.headers.get("content-range") == (f"bytes */{size}" if status == 416 else None)
    assert answer.headers["x-request-id"]


def test_every_answer_about_a_file_is_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    answers = paths["/prune-jobs/{job_id}/checkpoints/{file}"]["get"]["responses"]
    assert set(answers) == {"200", "206", "304", "400", "403", "404", "416", "422", "503"}
    for status in ("400", "416"):
        assert list(answers[status]["content"]) == ["application/problem+json"]


@pytest.mark.parametrize(
    "file",
    [
        "none.bin",
        "..",
        "%2e%2e%2fsecret.txt",
        "..%2f..%2fmodels%2ftiny%2fconfig.json",
        "%00",
        "a/b",
        "repair",
        "repair/../../secret.txt",
        "repair/depth-9.safetensors",
    ],
)
def test_nothing_else_can_be_downloaded(
    client: TestClient, job: dict[str, Any], data_dir: Path, file: str
) -> None:
    (data_dir / "checkpoints" / "secret.txt").write_text("classified")
    answer = client.get(f"{job['urls']['checkpoints']}/{file}")
    assert answer.status_code in (200, 404)  # the client itself shortens dots, to another route
    assert "classified" not in answer.text
    assert "etag" not in answer.headers


def test_a_surplus_file_is_no_part_of_it(
    client: TestClient, job: dict[str, Any], data_dir: Path
) -> None:
    directory = CheckpointStore(data_dir / "checkpoints").path(f"tiny@{job['id']}")
    (directory / "surplus.txt").write_text("x")
    (directory / "README.md").unlink()
    assert client.get(f"{job['urls']['checkpoints']}/surplus.txt").status_code == 404
    missing = client.get(f"{job['urls']['checkpoints']}/README.md")
    assert missing.status_code == 422
    assert "missing" in missing.json()["detail"]


@pytest.mark.parametrize("path", ["", "/config.json"])
def test_of_an_unknown_job_there_is_nothing(client: TestClient, path: str) -> None:
    answer = client.get(f"/prune-jobs/prn-{'0' * 21}/checkpoints{path}")
    assert answer.status_code == 404
    assert answer.json()["type"].endswith("job-not-found")
