"""Aliases over HTTP: set, switched while requests run, protected from deletion, and counted."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from app.cli.main import app as command_line
from pruning.checkpoints.store import CheckpointStore
from pruning.jobs.deletion import CheckpointInUse, JobDeletion
from pruning.jobs.job import Job, JobStatus
from pruning.jobs.store import JobStore
from tests.support.api_fixtures import publish_pruned
from tests.support.exposition import Scrape
from tests.support.full_disk import full_disk
from tests.support.job_lives import ended

BODY = {"model": "prod", "prompt": "a b c", "max_new_tokens": 4, "ignore_eos": True}


@pytest.fixture(autouse=True)
def _published(data_dir: Path) -> None:
    publish_pruned(data_dir)


def put(client: TestClient, target: str, alias: str = "prod") -> dict[str, object]:
    response = client.put(f"/models/{alias}", json={"target": target})
    assert response.status_code == 200, response.text
    view: dict[str, object] = response.json()
    return view


def test_an_alias_is_served_as_its_target_and_counted_under_its_name(client: TestClient) -> None:
    assert client.post("/generate", json=BODY).status_code == 404
    assert put(client, "tiny@-2")["is_loaded"]
    answer = client.post("/generate", json=BODY).json()
    assert (answer["model"], answer["variant"]) == ("prod", "pruned")
    plain = client.post("/generate", json={**BODY, "model": "tiny@prn-1-2"}).json()
    assert answer["outputs"][0]["text"] == plain["outputs"][0]["text"]
    scrape = Scrape(client.get("/metrics").text)
    counted = {labels["model_name"] for labels in scrape.series("sleb_generation_tokens_total")}
    assert counted == {"tiny@prn-1-2"}
    [info] = scrape.series("sleb_model_alias_info")
    assert (info["alias"], info["model_name"]) == ("prod", "tiny@prn-1-2")
    model = client.get("/models/prod").json()
    assert model["id"] == "tiny@prn-1-2"
    assert 1 < model["predicted_speedup"] < 3  # 6 blocks over 4, and all the rest
    listed = {model["id"]: model["aliases"] for model in client.get("/models").json()["data"]}
    assert (listed["tiny@-2"], listed["tiny@-1"]) == (["prod"], [])
    cards = {card["id"]: card["root"] for card in client.get("/v1/models").json()["data"]}
    assert (cards["prod"], cards["tiny"]) == ("tiny@prn-1-2", "tiny")


def test_a_newer_job_does_not_change_what_it_means(client: TestClient, data_dir: Path) -> None:
    put(client, "tiny@-2")
    publish_pruned(data_dir, num_remove=2, job="prn-2")
    assert client.get("/models/tiny@-2").json()["checkpoint"] == "tiny@prn-2"
    assert client.get("/models/prod").json()["checkpoint"] == "tiny@prn-1"


def test_a_full_disk_leaves_it_as_it_was(client: TestClient) -> None:
    put(client, "tiny")
    client.post("/models/tiny@prn-1-2/load")
    with full_disk():
        refused = client.put("/models/prod", json={"target": "tiny@prn-1-2"})
    assert (refused.status_code, refused.json()["type"]) == (500, "invalid-alias-file")
    assert "which is unchanged: File too large" in refused.json()["detail"]
    assert client.get("/models/prod").json()["id"] == "tiny"


def test_it_is_switched_while_requests_run(client: TestClient) -> None:
    put(client, "tiny")
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(client.post, "/generate", json=BODY) for _ in range(8)]
        put(client, "tiny@prn-1")
        assert client.post("/generate", json=BODY).json()["variant"] == "pruned"
        assert {future.result().status_code for future in running} == {200}


def test_what_cannot_be_an_alias_is_refused(client: TestClient) -> None:
    for alias, target, status, type_ in (
        ("prod", "unknown", 404, "model-not-found"),
        ("prod", "tiny@prn-1-9", 404, "model-not-found"),
        ("tiny", "tiny@-1", 409, "alias-taken"),
        ("tiny@-1", "tiny", 409, "alias-taken"),
        ("a b", "tiny", 422, "invalid-alias"),
        ("prod@-9", "tiny", 422, "invalid-alias"),
    ):
        response = client.put(f"/models/{alias}", json={"target": target})
        assert (response.status_code, response.json()["type"]) == (status, type_)
    assert client.get("/models/prod").status_code == 404


def test_it_can_be_removed_and_its_target_stays(client: TestClient) -> None:
    put(client, "tiny@-1+raw")
    put(client, "prod", alias="next")
    assert client.delete("/models/prod").status_code == 204
    assert client.get("/models/next").json()["id"] == "tiny@prn-1-1+raw"
    assert client.get("/models/next+raw").json()["id"] == "tiny@prn-1-1+raw"
    put(client, "tiny@prn-1")
    assert client.delete("/models/prod").status_code == 204
    assert client.get("/models/prod").status_code == 404
    assert client.get("/models/tiny@prn-1").status_code == 200
    assert client.delete("/models/prod").status_code == 404


def test_its_target_is_not_deleted(
    client: TestClient, data_dir: Path, redis_client: redis.Redis
) -> None:
    job: Job = ended(JobStore(redis_client), JobStatus.SUCCEEDED)
    publish_pruned(data_dir, job=job.id, spec=job.spec)
    put(client, f"tiny@{job.id}-1")
    response = client.delete(f"/prune-jobs/{job.id}")
    assert (response.status_code, response.json()["type"]) == (409, "checkpoint-in-use")
    assert "prod" in response.json()["detail"]
    put(client, "tiny")
    assert client.delete(f"/prune-jobs/{job.id}").status_code == 204
    assert client.get(f"/models/tiny@{job.id}").status_code == 404


def test_a_deletion_keeps_what_has_an_alias(data_dir: Path, redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    job: Job = ended(store, JobStatus.SUCCEEDED)
    checkpoints = CheckpointStore(data_dir / "checkpoints")
    publish_pruned(data_dir, job=job.id, spec=job.spec)
    deletion = JobDeletion(redis_client, store, checkpoints, lambda name: [f"alias of {name}"])
    for delete in (deletion.delete, deletion.unpublish):
        with pytest.raises(CheckpointInUse, match=f"alias of tiny@{job.id}"):
            delete(job.id)
    assert checkpoints.holds(job.checkpoint_name)


def test_a_broken_file_concerns_aliases_only(client: TestClient, data_dir: Path) -> None:
    (data_dir / "aliases.json").write_text("{")
    assert client.post("/generate", json={**BODY, "model": "tiny"}).status_code == 200
    response = client.post("/generate", json=BODY)
    assert (response.status_code, response.json()["type"]) == (500, "invalid-alias-file")
    assert "sleb_model_info" in client.get("/metrics").text
    entries = {each["id"]: each["error"] for each in client.get("/models").json()["data"]}
    assert "restore it" in entries.pop("aliases.json")
    assert "tiny" in entries
    assert not any(entries.values())
    assert "tiny" in [card["id"] for card in client.get("/v1/models").json()["data"]]
    response = client.delete("/models/tiny")
    assert (response.status_code, response.json()["type"]) == (409, "model-in-use")


BROKEN: dict[str, object] = {
    "number": 5, "empty": "", "long": "a" * 10_000, "half": "\ud800", "no name": "tiny",
    "here": "there", "there": "here+int8", "itself": "itself",
}  # fmt: skip


def test_a_broken_alias_is_one_entry_and_one_line(
    client: TestClient, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = data_dir / "aliases.json"
    file.write_text(json.dumps({"format": 1, "aliases": {"prod": "tiny@-1", **BROKEN}}))
    for _ in range(2):
        entries = {each["id"]: each["error"] for each in client.get("/models").json()["data"]}
        assert client.get("/metrics").status_code == 200
    assert {name for name, error in entries.items() if error} == BROKEN.keys()
    cards = {card["id"] for card in client.get("/v1/models").json()["data"]}
    assert cards & {"prod", *BROKEN} == {"prod"}
    assert len([line for line in caplog.messages if "unavailable" in line]) == len(BROKEN)
    for name in BROKEN:
        assert client.post("/generate", json={**BODY, "model": name}).status_code == 404
    assert client.post("/generate", json=BODY).status_code == 200
    put(client, "tiny", "number")
    for name in BROKEN:  # the change of one has not lost the others
        assert client.delete(f"/models/{name}").status_code == 204, name
    assert json.loads(file.read_text())["aliases"] == {"prod": "tiny@-1"}


def test_a_deletion_keeps_what_may_have_an_alias(
    client: TestClient, data_dir: Path, redis_client: redis.Redis
) -> None:
    job: Job = ended(JobStore(redis_client), JobStatus.SUCCEEDED)
    publish_pruned(data_dir, job=job.id, spec=job.spec)
    (data_dir / "aliases.json").write_text("[" * 200_000)
    response = client.delete(f"/prune-jobs/{job.id}")
    assert (response.status_code, response.json()["type"]) == (409, "checkpoint-in-use")
    assert "cannot check whether" in response.json()["detail"]


def test_the_command_and_the_service_have_the_same_aliases(
    client: TestClient, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(data_dir))

    def sleb(*words: str) -> str:
        result = CliRunner().invoke(command_line, ["models", *words], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    assert "no aliases" in sleb("alias")
    assert sleb("alias", "prod", "tiny@-3") == "prod is tiny@prn-1\n"
    assert client.get("/models/prod").json()["id"] == "tiny@prn-1"
    put(client, "tiny@prn-1-1")
    assert sleb("alias") == "prod is tiny@prn-1-1\n"
    listed = {model["id"]: model["aliases"] for model in json.loads(sleb("--json"))}
    assert listed["tiny@-1"] == ["prod"]
    sleb("alias", "prod", "--remove")
    assert client.get("/models/prod").status_code == 404
    assert CliRunner().invoke(command_line, ["models", "alias", "prod"]).exit_code == 2
