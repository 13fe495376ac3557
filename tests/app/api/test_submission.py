"""Submitting over HTTP: tried without doing, refused where it can never be done; and deleting."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from fastapi.testclient import TestClient

from app.config import ServeSettings
from pruning.jobs import transitions
from pruning.jobs.job import HealProgress, JobError, JobStatus
from pruning.jobs.store import JobStore
from pruning.search.state import SearchPlan
from tests.support.api_fixtures import publish_pruned
from tests.support.job_lives import REMOVAL
from tests.support.prune_requests import JOB, num_jobs, post_with_key, submit
from tests.support.serving import local_api

pytestmark = pytest.mark.usefixtures("nothing_preloaded")

# ---- dry runs


def test_a_dry_run_tells_what_a_job_needs_and_creates_nothing(
    client: TestClient, data_dir: Path, redis_client: redis.Redis
) -> None:
    answer = client.post(
        "/prune-jobs", json={**JOB, "dry_run": True}, headers={"Idempotency-Key": "k"}
    )
    assert answer.status_code == 200
    needed = answer.json()
    assert (needed["object"], needed["model"]) == ("prune_job.estimate", "tiny")
    assert (needed["evaluations_total"], needed["is_upper_bound"]) == (7, False)
    assert (needed["estimated_s"], needed["estimated_from"]) == (None, [])
    file = data_dir / "models" / "tiny" / "model.safetensors"
    assert 0 < needed["checkpoint_bytes"] < needed["weight_bytes"] < file.stat().st_size
    assert needed["state_bytes"] > needed["least_state_bytes"] > 0
    assert needed["free_disk_bytes"] > needed["checkpoint_bytes"]
    assert redis_client.keys("sleb:*") == []
    assert needed["heal"] is None
    assert not (data_dir / "checkpoints").exists()


def test_a_dry_run_tells_what_a_healing_needs(client: TestClient, job_store: JobStore) -> None:
    heal = {"num_tokens": 1000, "rank": 2, "batch_tokens": 64}
    body = {**JOB, "heal": heal, "dry_run": True}
    needed = client.post("/prune-jobs", json=body).json()
    found = needed["heal"]
    seqlen = JOB["calibration"]["seqlen"]
    assert found["num_tokens"] == found["control_tokens"] >= 1000
    assert found["num_tokens"] % seqlen == 0
    assert (found["estimated_s"], found["estimated_from"]) == (None, [])
    assert 0 < found["adapter_bytes"] < found["training_bytes"]
    pruned_bytes = needed["checkpoint_bytes"] + needed["repair_bytes"]
    assert found["checkpoint_bytes"] == pruned_bytes + found["adapter_bytes"]
    job_id = submit(client, heal=heal)["id"]
    job_store.start(job_id, "w")
    job_store.record(
        job_id,
        transitions.healing(HealProgress("control", 500, 1.0, 2.0, 9.0, 5.0, 2.0), is_check=False),
    )
    job_store.succeed(job_id, "tiny@x")
    needed = client.post("/prune-jobs", json=body).json()
    expected = found["num_tokens"] * 5 / 500 * (1.5 + 1)  # of all depths, and of the control
    assert needed["heal"]["estimated_s"] == pytest.approx(expected)
    assert needed["heal"]["estimated_from"] == [job_id]
    assert needed["estimated_from"] == []


def test_the_number_of_evaluations_may_be_an_upper_bound(client: TestClient) -> None:
    target = {"num_remove": None, "max_perplexity_ratio": 1.5, "dry_run": True}
    needed = client.post("/prune-jobs", json={**JOB, **target}).json()
    assert (needed["evaluations_total"], needed["is_upper_bound"]) == (10, True)


def test_the_time_is_judged_by_earlier_jobs_of_the_kind(
    client: TestClient, job_store: JobStore
) -> None:
    job = submit(client)
    job_store.start(job["id"], "w")
    for done in range(1, 8):
        job_store.record(job["id"], transitions.evaluated(done, 7))
    job_store.succeed(job["id"], "tiny@x")
    record = job_store.get(job["id"])
    assert record.started_at is not None
    assert record.finished_at is not None
    anew = {**JOB, "dry_run": True, "reuse_search": False}
    needed = client.post("/prune-jobs", json=anew).json()
    assert needed["estimated_from"] == [job["id"]]
    assert needed["estimated_s"] == pytest.approx(record.finished_at - record.started_at)
    known = client.post("/prune-jobs", json={**JOB, "dry_run": True}).json()
    assert (known["search_of"], known["estimated_s"]) == (job["id"], 0)


def test_a_dry_run_refuses_what_a_job_is_refused_for(client: TestClient) -> None:
    answer = client.post("/prune-jobs", json={**JOB, "num_remove": 5, "dry_run": True})
    assert answer.status_code == 422
    assert answer.json()["type"].endswith("too-many-removals")
    assert answer.json()["param"] == "num_remove"


# ---- searches of earlier jobs


def searched(store: JobStore, job_id: str, status: JobStatus) -> None:
    """The job has found a removal, and has ended so."""
    store.start(job_id, "w")
    store.record(job_id, transitions.searching(SearchPlan("d1g", 2), 0, 7))
    store.record(job_id, transitions.evaluated(4, 7))
    store.record(job_id, transitions.removed([REMOVAL]))
    if status is JobStatus.FAILED:
        store.fail(job_id, JobError("quality_gate", "too bad"))
    else:
        store.succeed(job_id, "tiny@x")


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.SUCCEEDED])
def test_a_job_goes_on_with_the_search_of_an_earlier_one(
    client: TestClient, job_store: JobStore, status: JobStatus
) -> None:
    searched(job_store, earlier := submit(client)["id"], status)
    submit(client, reuse_search=False)  # which has found nothing
    job = submit(client, repair="none", evaluate=False)
    assert job["search_of"] == earlier
    assert job["removed_blocks"] == [REMOVAL.block]
    assert job["progress"]["evaluations_done"] == 4
    assert job_store.search_state(job["id"]) == job_store.search_state(earlier)


def test_a_search_that_differs_or_is_not_wanted_begins_anew(
    client: TestClient, job_store: JobStore
) -> None:
    searched(job_store, submit(client)["id"], JobStatus.FAILED)
    for change in ({"num_remove": 1}, {"protect_last": 2}, {"reuse_search": False}):
        job = submit(client, **change)
        assert (job["search_of"], job["removed_blocks"]) == (None, [])


# ---- bounds


@pytest.fixture
def few(settings: ServeSettings, redis_url: str, job_store: JobStore) -> Iterator[TestClient]:
    """An API where three jobs may wait."""
    assert not any(job_store.counts().values())
    with local_api(settings, redis_url, max_queued_jobs=3, preload=()) as client:
        yield client


def test_a_full_queue_refuses_and_says_when_to_come_again(
    few: TestClient, job_store: JobStore, redis_client: redis.Redis
) -> None:
    first, *_ = [submit(few)["id"] for _ in range(3)]
    refused = post_with_key(few, "k")
    assert refused.status_code == 429
    assert refused.json()["type"].endswith("queue-full")
    assert refused.headers["retry-after"] == "60"  # nothing runs, so nothing is known
    assert redis_client.keys("sleb:idempotency:*") == []
    job_store.start(first, "w")
    submit(few)
    redis_client.hset(
        f"sleb:job:{first}",
        mapping={
            "phase": "search",
            "search_started_at": "1e9",
            "evaluated_at": "2e9",
            "evaluations_done": "3",
            "evaluations_total": "15",
        },
    )
    assert post_with_key(few, "k").headers["retry-after"] == "3600"
    assert num_jobs(few) == 4
    assert few.post("/prune-jobs", json={**JOB, "dry_run": True}).status_code == 200


def test_the_queue_stays_bounded_for_many_clients_at_once(few: TestClient) -> None:
    with ThreadPoolExecutor(max_workers=20) as clients:
        answers = list(clients.map(lambda number: post_with_key(few, str(number)), range(40)))
    assert sorted({answer.status_code for answer in answers}) == [202, 429]
    assert sum(answer.status_code == 202 for answer in answers) == num_jobs(few) == 3


def test_a_checkpoint_that_no_disk_space_is_left_for_is_refused(
    client: TestClient, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = client.post("/prune-jobs", json={**JOB, "dry_run": True}).json()["checkpoint_bytes"]
    asked: list[Path] = []

    def full(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=needed - 1)

    monkeypatch.setattr(shutil, "disk_usage", full)
    refused = post_with_key(client, "k")
    assert refused.status_code == 422
    assert refused.json()["type"].endswith("disk-too-small")
    assert str(needed) in refused.json()["detail"]
    assert asked == [data_dir]
    assert submit(client, num_remove=3)["status"] == "queued"
    assert post_with_key(client, "k", save_dtype="bfloat16").status_code == 202


# ---- deletion and description


def test_an_ended_job_is_deleted_with_its_checkpoint(
    client: TestClient, data_dir: Path, job_store: JobStore
) -> None:
    job = submit(client)
    refused = client.delete(job["urls"]["self"])
    assert refused.status_code == 409
    assert refused.json()["type"].endswith("illegal-transition")
    job_store.start(job["id"], "w")
    name = publish_pruned(data_dir, job=job["id"], spec=job_store.get(job["id"]).spec).name
    job_store.succeed(job["id"], name)
    body = {"model": f"{name}-2", "prompt": "the dog", "max_new_tokens": 2}
    assert client.post("/generate", json=body).status_code == 200
    deleted = client.delete(job["urls"]["self"])
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert client.get(job["urls"]["self"]).status_code == 404
    assert client.delete(job["urls"]["self"]).status_code == 404
    assert client.post("/generate", json=body).status_code == 404
    assert [model["id"] for model in client.get("/models").json()["data"]] == ["tiny"]
    assert client.post("/generate", json={**body, "model": "tiny"}).status_code == 200
    assert [path.name for path in (data_dir / "checkpoints").iterdir()] == [".staging"]
    assert list((data_dir / "checkpoints" / ".staging").iterdir()) == []


def test_conditions_tell_the_states_a_job_has_been_in(
    client: TestClient, job_store: JobStore
) -> None:
    def conditions() -> list[tuple[str, str, float | None]]:
        view = client.get(f"/prune-jobs/{job_id}").json()
        return [(c["type"], c["status"], c["last_transition_at"]) for c in view["conditions"]]

    job_id = submit(client)["id"]
    assert conditions() == [("Queued", "True", job_store.get(job_id).created_at)]
    job_store.start(job_id, "w")
    started = job_store.get(job_id).started_at
    assert conditions() == [("Queued", "False", started), ("Running", "True", started)]
    job_store.requeue(job_id, "requeued", is_lost=False)
    back = job_store.get(job_id).status_since
    assert conditions() == [("Queued", "True", back), ("Running", "False", back)]
    job_store.cancel(job_id)
    ended = job_store.get(job_id).finished_at
    assert job_store.get(job_id).status is JobStatus.CANCELLED
    assert conditions()[1:] == [("Running", "False", ended), ("Cancelled", "True", ended)]


def test_the_api_description_names_every_answer(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    answers = paths["/prune-jobs"]["post"]["responses"]
    assert set(answers) >= {"200", "202", "404", "409", "413", "422", "429", "503"}
    assert {"Location", "Retry-After", "Idempotent-Replayed"} <= set(answers["202"]["headers"])
    assert answers["200"]["content"]["application/json"]["schema"]["$ref"].endswith("EstimateView")
    for status in ("409", "429", "503"):
        assert "Retry-After" in answers[status]["headers"]
    for status in set(answers) - {"200", "202"}:
        assert list(answers[status]["content"]) == ["application/problem+json"]
    deleted = paths["/prune-jobs/{job_id}"]["delete"]["responses"]
    assert set(deleted) >= {"204", "404", "409", "422", "503"}
