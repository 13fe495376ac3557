"""Jobs belong to the tenant whose key made them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from app.auth.keys import KeyFile, Scope
from app.config import ServeSettings
from pruning.jobs.job import JobStatus
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.prune_requests import JOB

Headers = Mapping[str, str]


@pytest.fixture
def settings(data_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, drain_s=0, preload=(), max_queued_jobs=1000)


@pytest.fixture
def keys(settings: ServeSettings) -> dict[str, Headers]:
    """Two keys of one team, one of another tenant, and an admin."""
    file = KeyFile(settings.keys_file)
    made = {
        "ann": file.create("ann", [Scope.JOBS], tenant="team"),
        "bob": file.create("bob", [Scope.JOBS], tenant="team"),
        "eve": file.create("eve", [Scope.JOBS, Scope.GENERATE]),
        "root": file.create("root", [Scope.ADMIN]),
    }
    return {name: {"Authorization": f"Bearer {key}"} for name, key in made.items()}


def submit(client: TestClient, headers: Headers) -> dict[str, Any]:
    response = client.post("/prune-jobs", json=JOB, headers=headers)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def listed(client: TestClient, headers: Headers, **params: Any) -> list[str]:
    response = client.get("/prune-jobs", params=params, headers=headers)
    return [job["id"] for job in response.json()["data"]]


def test_a_team_sees_its_jobs_and_others_do_not(
    client: TestClient, keys: Mapping[str, Headers]
) -> None:
    job = submit(client, keys["ann"])
    assert job["tenant"] == "team"
    for name, status in (("ann", 200), ("bob", 200), ("root", 200), ("eve", 404)):
        assert client.get(f"/prune-jobs/{job['id']}", headers=keys[name]).status_code == status
        assert listed(client, keys[name]) == ([job["id"]] if status == 200 else [])
    own = submit(client, keys["eve"])
    assert own["tenant"] == "eve"
    assert listed(client, keys["root"]) == [own["id"], job["id"]]
    assert listed(client, keys["bob"]) == [job["id"]]


def test_every_route_of_a_job_is_closed_to_others(
    client: TestClient, keys: Mapping[str, Headers]
) -> None:
    """A 404 that is the one of a job that does not exist."""
    job_id = submit(client, keys["ann"])["id"]
    paths: dict[str, Any] = client.get("/openapi.json").json()["paths"]
    asked = 0
    for path in (path for path in paths if "{job_id}" in path):
        for method in paths[path]:
            url = path.replace("{job_id}", job_id).replace("{file}", "config.json")
            refusal = client.request(method, url, headers=keys["eve"])
            missing = client.request(
                method, url.replace(job_id, f"prn-{'0' * 21}"), headers=keys["eve"]
            )
            assert refusal.status_code == missing.status_code == 404, (method, path)
            told = json.dumps(refusal.json()).replace(job_id, f"prn-{'0' * 21}")
            assert told == json.dumps(missing.json()), (method, path)
            asked += 1
    assert asked >= 9
    job = client.get(f"/prune-jobs/{job_id}", headers=keys["bob"]).json()
    assert job["status"] == JobStatus.QUEUED
    stream = {**keys["eve"], "Accept": "text/event-stream"}
    assert client.get(f"/prune-jobs/{job_id}/events", headers=stream).status_code == 404


def test_pages_are_full_whatever_lies_between(
    client: TestClient, keys: Mapping[str, Headers], redis_client: redis.Redis
) -> None:
    """Of more jobs of others than are looked at at once."""
    own = [submit(client, keys["eve"])["id"] for _ in range(3)]
    store = JobStore(redis_client)
    spec = PruneSpec("tiny", 1)
    for _ in range(300):
        store.create(spec)
    redis_client.eval(
        "for _, id in ipairs(redis.call('ZRANGE', 'sleb:jobs', 3, -1)) do "
        "redis.call('HSET', 'sleb:job:' .. id, 'owner', 'team') end",
        0,
    )
    own += [submit(client, keys["eve"])["id"]]
    newest = [*reversed(own)]
    assert listed(client, keys["eve"], limit=2) == newest[:2]
    assert listed(client, keys["eve"], limit=2, after=newest[1]) == newest[2:]
    page = client.get("/prune-jobs", params={"limit": 3}, headers=keys["eve"]).json()
    assert page["has_more"]
    assert listed(client, keys["eve"], status="queued", limit=100) == newest


def test_jobs_without_an_owner_are_of_all(
    client: TestClient, keys: Mapping[str, Headers], job_store: JobStore
) -> None:
    """Those of an earlier version, and those that were made before there were keys."""
    job = job_store.create(PruneSpec("tiny", 1))
    assert job_store.get(job.id).owner is None
    for headers in keys.values():
        assert client.get(f"/prune-jobs/{job.id}", headers=headers).json()["tenant"] is None
        assert listed(client, headers) == [job.id]


def test_without_keys_a_job_is_of_all(settings: ServeSettings, client: TestClient) -> None:
    job = client.post("/prune-jobs", json=JOB).json()
    assert job["tenant"] is None
    key = KeyFile(settings.keys_file).create("new", [Scope.JOBS])
    headers = {"Authorization": f"Bearer {key}"}
    assert client.get(f"/prune-jobs/{job['id']}", headers=headers).status_code == 200
