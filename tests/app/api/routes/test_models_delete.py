"""Deletion of dense models over HTTP."""

from pathlib import Path

import redis
from fastapi.testclient import TestClient

from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.api_fixtures import publish_pruned

BODY = {"model": "tiny", "prompt": "a b c", "max_new_tokens": 2}


def test_a_model_is_deleted_once_nothing_uses_it(
    client: TestClient, data_dir: Path, redis_client: redis.Redis
) -> None:
    publish_pruned(data_dir)
    assert client.post("/generate", json=BODY).status_code == 200

    def refusal() -> tuple[str, str]:
        response = client.delete("/models/tiny")
        assert response.status_code == 409
        assert (data_dir / "models" / "tiny").is_dir()
        return response.json()["type"], response.json()["detail"]

    jobs = JobStore(redis_client)
    job = jobs.create(PruneSpec("tiny", num_remove=1))
    type_, detail = refusal()
    assert (type_, job.id in detail) == ("model-in-use", True)
    jobs.cancel(job.id)
    client.put("/models/prod", json={"target": "tiny@-1"})
    type_, detail = refusal()
    assert (type_, "prod" in detail) == ("model-in-use", True)
    client.delete("/models/prod")
    assert client.delete("/models/tiny@-1").json()["type"] == "not-deletable"
    assert client.delete("/models/unknown").status_code == 404

    assert client.delete("/models/tiny").status_code == 204
    assert not (data_dir / "models" / "tiny").exists()
    assert client.post("/generate", json=BODY).status_code == 404
    whole = client.post("/generate", json={**BODY, "model": "tiny@prn-1"})
    assert whole.status_code == 200, "the published checkpoint has weights of its own"
