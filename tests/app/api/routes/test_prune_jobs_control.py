"""Pausing, resuming and priorities over HTTP."""

from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from pruning.jobs import transitions
from pruning.jobs.job import JobStatus, Phase
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.search.state import SearchPlan
from tests.support.prune_requests import JOB, submit

pytestmark = pytest.mark.usefixtures("nothing_preloaded")


def post(client: TestClient, job: dict[str, Any], action: str) -> dict[str, Any]:
    response = client.post(job["urls"][action])
    assert response.status_code == 202, response.text
    found: dict[str, Any] = response.json()
    return found


def conditions(job: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in job["conditions"]}


def test_a_waiting_job_is_paused_and_resumed(
    client: TestClient, job_store: JobStore, redis_client: redis.Redis
) -> None:
    job = submit(client)
    paused = post(client, job, "pause")
    assert (paused["status"], paused["pause_requested_at"]) == ("paused", None)
    assert conditions(paused)["Paused"] == ("True", "Requested")
    since = job_store.get(job["id"]).status_since
    assert {each["last_transition_at"] for each in paused["conditions"]} == {since}
    assert post(client, job, "pause") == paused
    resumed = post(client, job, "resume")
    assert resumed["status"] == "queued"
    assert conditions(resumed) == {"Queued": ("True", "Returned")}
    assert PruneQueue(redis_client).rq.get_job_ids() == [job["id"]]


def test_a_running_job_shows_that_it_is_to_pause_until_it_does(
    client: TestClient, job_store: JobStore, redis_client: redis.Redis
) -> None:
    job = submit(client)
    redis_client.delete("rq:queue:prune", f"rq:job:{job['id']}")  # a worker has it
    attempt = job_store.start(job["id"], "worker-1").attempt
    job_store.record(job["id"], transitions.phase_begun(Phase.SEARCH), attempt)
    job_store.record(job["id"], transitions.searching(SearchPlan("d1g", 2), 0, 9), attempt)
    job_store.record(job["id"], transitions.evaluated(3, 9), attempt)
    asked = post(client, job, "pause")
    assert (asked["status"], asked["worker"]) == ("running", "worker-1")
    assert asked["pause_requested_at"] is not None
    assert asked["estimated_finish"] is not None
    assert conditions(asked)["Running"] == ("True", "Pausing")
    assert conditions(asked)["Paused"] == ("False", "Requested")
    job_store.stopped(job["id"], attempt)
    paused = client.get(job["urls"]["self"]).json()
    assert (paused["status"], paused["worker"], paused["phase"]) == ("paused", None, None)
    assert (paused["estimated_finish"], paused["pause_requested_at"]) == (None, None)
    assert paused["progress"]["evaluations_done"] == 3
    assert conditions(paused)["Paused"] == ("True", "Requested")
    assert conditions(paused)["Running"] == ("False", "Left")
    assert post(client, job, "resume")["attempt"] == 1
    assert PruneQueue(redis_client).rq.get_job_ids() == [job["id"]]
    events = client.get(job["urls"]["events"]).json()["data"]
    said = [event["message"] for event in events]
    assert said[-3:] == ["pause requested", "paused", "resumed"]


def test_a_pause_can_be_withdrawn_and_then_nothing_is_delivered(
    client: TestClient, job_store: JobStore, redis_client: redis.Redis
) -> None:
    job = submit(client)
    redis_client.delete("rq:queue:prune", f"rq:job:{job['id']}")
    job_store.start(job["id"], "worker-1")
    post(client, job, "pause")
    running = post(client, job, "resume")
    assert (running["status"], running["pause_requested_at"]) == ("running", None)
    assert conditions(running)["Running"] == ("True", "Started")
    assert PruneQueue(redis_client).rq.get_job_ids() == []


def test_what_makes_no_sense_is_409_and_changes_nothing(client: TestClient) -> None:
    job = submit(client)
    refused = client.post(job["urls"]["resume"])
    assert refused.status_code == 409
    assert refused.json()["type"].endswith("illegal-transition")
    assert "queued" in refused.json()["detail"]
    assert client.get(job["urls"]["self"]).json() == job
    client.post(job["urls"]["cancel"])
    assert client.post(job["urls"]["pause"]).status_code == 409
    assert client.post(job["urls"]["resume"]).status_code == 409


@pytest.mark.parametrize("action", ["pause", "resume"])
def test_an_unknown_job_is_404(client: TestClient, action: str) -> None:
    for job_id in ("prn-1", "prn-" + "0" * 21, "%00"):
        assert client.post(f"/prune-jobs/{job_id}/{action}").status_code == 404


def test_a_paused_job_is_listed_cancelled_and_not_deleted(client: TestClient) -> None:
    job = submit(client)
    post(client, job, "pause")
    listed = client.get("/prune-jobs", params={"status": "paused"}).json()["data"]
    assert [each["id"] for each in listed] == [job["id"]]
    assert client.delete(job["urls"]["self"]).status_code == 409
    assert post(client, job, "cancel")["status"] == "cancelled"


def test_a_job_has_its_priority_and_goes_before_others(
    client: TestClient, job_store: JobStore
) -> None:
    usual, urgent = submit(client), submit(client, priority=100)
    assert (usual["priority"], urgent["priority"]) == (0, 100)
    assert client.get(urgent["urls"]["self"]).json()["priority"] == 100
    assert job_store.get(urgent["id"]).status is JobStatus.QUEUED


@pytest.mark.parametrize("priority", [101, -101, 1.5, "high", None, 10**30])
def test_a_priority_out_of_range_is_refused(client: TestClient, priority: object) -> None:
    response = client.post("/prune-jobs", json={**JOB, "priority": priority})
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/priority"
