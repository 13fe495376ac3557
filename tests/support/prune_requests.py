"""Requests for pruning jobs over HTTP, and the smallest body that one may have."""

from typing import Any

from fastapi.testclient import TestClient
from httpx2 import Response

JOB: dict[str, Any] = {
    "model": "tiny",
    "num_remove": 2,
    "calibration": {"num_samples": 2, "seqlen": 8},
}


def submit(client: TestClient, **change: Any) -> dict[str, Any]:
    response = client.post("/prune-jobs", json={**JOB, **change})
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def post_with_key(client: TestClient, key: str, **change: Any) -> Response:
    headers = {"Idempotency-Key": key}
    return client.post("/prune-jobs", json={**JOB, **change}, headers=headers)


def num_jobs(client: TestClient) -> int:
    return len(client.get("/prune-jobs", params={"limit": 100}).json()["data"])


EVENT_STREAM = {"Accept": "text/event-stream"}


def events_url(job_id: str) -> str:
    return f"/prune-jobs/{job_id}/events"
