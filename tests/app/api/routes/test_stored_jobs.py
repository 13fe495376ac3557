"""A job record that somebody else has written is one failed job, which can be deleted."""

from collections.abc import Iterator

import pytest
import redis

from app.config import ServeSettings
from pruning.jobs.job import JobStatus
from pruning.jobs.keys import RECORD, STATUS_INDEX
from tests.support.serving import LocalClient, local_api

BODY = {"model": "tiny", "num_remove": 1}
SPEC = '{"model": "tiny", "num_remove": 1, "unknown": 1}'


@pytest.fixture
def client(settings: ServeSettings, redis_url: str) -> Iterator[LocalClient]:
    with local_api(settings, redis_url, preload=("tiny",)) as client:
        yield client


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.RUNNING])
def test_a_broken_record_breaks_no_route(
    client: LocalClient, redis_client: redis.Redis, status: JobStatus
) -> None:
    good, bad = (client.post("/prune-jobs", json=BODY).json()["id"] for _ in range(2))
    redis_client.hset(RECORD.format(id=bad), mapping={"spec": SPEC, "status": status})
    redis_client.hset(RECORD.format(id=bad), "status_since", "x")
    redis_client.zrem(STATUS_INDEX.format(status=JobStatus.QUEUED), bad)
    redis_client.zadd(STATUS_INDEX.format(status=status), {bad: 0})
    for path in ("/models", "/models?unpublished=true", "/v1/models", "/metrics", "/status"):
        assert client.get(path).status_code == 200, path
    jobs = {job["id"]: job for job in client.get("/prune-jobs").json()["data"]}
    assert (jobs[good]["status"], jobs[bad]["status"]) == ("queued", "failed")
    assert jobs[bad]["error"]["code"] == "broken_record"
    assert "unknown" in client.get(f"/prune-jobs/{bad}").json()["error"]["message"]
    assert client.get(f"/prune-jobs/{bad}/events").status_code < 500
    assert client.post(f"/prune-jobs/{bad}/cancel").status_code < 500
    assert client.delete(f"/prune-jobs/{bad}").status_code < 300
    assert client.get(f"/prune-jobs/{bad}").status_code == 404
    assert not redis_client.zscore(STATUS_INDEX.format(status=status), bad)
    body = {"model": "tiny", "prompt": "a", "max_new_tokens": 1}
    assert client.post("/generate", json=body).status_code == 200
