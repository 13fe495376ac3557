"""Retrying jobs over HTTP: what may change, what is refused, and who may do it."""

from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from pruning.jobs import transitions
from pruning.jobs.job import JobError, JobStatus
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.search.state import SearchPlan
from pruning.spec.heal import Heal
from pruning.spec.prune import PruneSpec
from tests.support.job_lives import REMOVAL
from tests.support.prune_requests import JOB, submit

pytestmark = pytest.mark.usefixtures("nothing_preloaded")


@pytest.fixture
def failed(client: TestClient, job_store: JobStore, redis_client: redis.Redis) -> dict[str, Any]:
    """A job whose repair has failed behind the search."""
    job = submit(client, gate={"max_probe_drop": 0.1, "action": "refuse"}, repair="ridge")
    redis_client.delete("rq:queue:prune", f"rq:job:{job['id']}")  # a worker has taken it
    attempt = job_store.start(job["id"], "w").attempt
    job_store.record(job["id"], transitions.searching(SearchPlan("d1g", 2), 0, 7), attempt)
    job_store.record(job["id"], transitions.removed([REMOVAL]), attempt)
    job_store.record(job["id"], transitions.evaluated(7, 7), attempt)
    job_store.fail(job["id"], JobError("disk_full", "no room for hidden states"), attempt)
    return job


def test_a_failed_job_is_queued_as_it_was(
    client: TestClient, job_store: JobStore, redis_client: redis.Redis, failed: dict[str, Any]
) -> None:
    state = job_store.search_state(failed["id"])
    response = client.post(failed["urls"]["retry"])
    assert response.status_code == 202, response.text
    job = response.json()
    assert (job["status"], job["error"], job["finished_at"]) == ("queued", None, None)
    assert job["spec"] == failed["spec"]
    assert job["removed_blocks"] == [REMOVAL.block]
    assert job["progress"]["ratio"] == 1
    assert job_store.search_state(failed["id"]) == state
    assert PruneQueue(redis_client).rq.get_job_ids() == [failed["id"]]


def test_what_follows_the_search_can_change(client: TestClient, failed: dict[str, Any]) -> None:
    heal = {"num_tokens": 64, "rank": 2}
    changes = {"repair": "none", "evaluate": False, "gate": None, "heal": heal}
    job = client.post(failed["urls"]["retry"], json=changes).json()
    spec, before = job["spec"], failed["spec"]
    assert (spec["repair"], spec["evaluate"], spec["gate"]) == ("none", False, None)
    assert spec["heal"]["num_tokens"] == 64
    kept = spec.keys() - changes.keys()
    assert {name: spec[name] for name in kept} == {name: before[name] for name in kept}
    digests = {PruneSpec.from_dict(each).search_digest() for each in (spec, before)}
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_remove": 1}, "num_remove"),
        ({"calibration": {"seqlen": 4}}, "calibration"),
        ({"repair": "polish"}, "repair"),
        ({"evaluate": False, "quantize": "int8"}, "quantize requires evaluate"),
        ({"heal": {"rank": 0}}, "heal.rank=0"),
        ({"heal": {}, "resident": "stream"}, "heal requires the whole model"),
    ],
)
def test_what_the_search_depends_on_and_what_makes_no_sense_is_refused(
    client: TestClient, job_store: JobStore, failed: dict[str, Any], changes: Any, said: str
) -> None:
    response = client.post(failed["urls"]["retry"], json=changes)
    assert response.status_code == 422
    assert said in response.text
    assert job_store.get(failed["id"]).status is JobStatus.FAILED


def test_only_a_job_without_a_result_is_retried(client: TestClient, job_store: JobStore) -> None:
    job = submit(client)
    refused = client.post(job["urls"]["retry"])
    assert refused.status_code == 409
    assert "expected a failed or cancelled job" in refused.json()["detail"]
    job_store.cancel(job["id"])
    assert client.post(job["urls"]["retry"]).json()["status"] == "queued"
    job_store.start(job["id"], "w")
    job_store.succeed(job["id"], "tiny@x")
    assert client.post(job["urls"]["retry"]).status_code == 409
    assert client.post("/prune-jobs/prn-" + "0" * 21 + "/retry").status_code == 404


def test_a_job_whose_model_is_gone_is_not_queued(
    client: TestClient, job_store: JobStore, failed: dict[str, Any]
) -> None:
    job_id = job_store.create(PruneSpec.from_dict({**failed["spec"], "model": "gone"})).id
    job_store.cancel(job_id)
    refused = client.post(f"/prune-jobs/{job_id}/retry")
    assert (refused.status_code, job_store.get(job_id).status) == (404, JobStatus.CANCELLED)


def test_the_stream_of_a_retried_job_goes_on_behind_its_first_end(
    client: TestClient, job_store: JobStore, failed: dict[str, Any]
) -> None:
    client.post(failed["urls"]["retry"])
    job_store.start(failed["id"], "w")
    job_store.succeed(failed["id"], "tiny@x")
    stream = client.get(failed["urls"]["events"], headers={"Accept": "text/event-stream"}).text
    said = [line for line in stream.splitlines() if line.startswith("data: ")]
    assert ["no room for hidden states" in line for line in said].count(True) == 1
    assert "published tiny@x" in said[-1]


def test_it_is_refused_like_a_new_job_when_the_disk_is_full(
    client: TestClient, failed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: type("Usage", (), {"free": 10}))
    for url, body in ((failed["urls"]["retry"], {}), ("/prune-jobs", JOB)):
        refused = client.post(url, json=body)
        assert refused.json()["type"].endswith("disk-too-small")


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"repair": "none"}, 422, "this job only heals: change heal"),
        ({"heal": None}, 422, "this job only heals: change the settings"),
        ({"heal": {"rank": 4}}, 404, "no checkpoint named"),
        ({}, 404, "no checkpoint named"),
    ],
)
def test_a_job_that_only_heals_changes_its_healing_alone(
    client: TestClient, job_store: JobStore, changes: Any, status: int, said: str
) -> None:
    spec = PruneSpec("tiny", num_remove=1, heal=Heal(rank=2))
    job_id = job_store.create(spec, source="tiny@gone").id
    job_store.cancel(job_id)
    refused = client.post(f"/prune-jobs/{job_id}/retry", json=changes)
    assert (refused.status_code, said in refused.text) == (status, True), refused.text
    assert job_store.get(job_id).status is JobStatus.CANCELLED
