"""Quotas of tenants on jobs over HTTP: what is refused how, and what a waiting job tells."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from httpx2 import Response

from app.auth.keys import KeyFile, Quota, Scope
from app.config import ServeSettings
from pruning.checkpoints.store import MANIFEST, read_manifest
from pruning.jobs.conditions import ANY_TENANT
from pruning.jobs.keys import RUNNING_LIMITS
from pruning.jobs.queue import LeasedQueue, PruneQueue
from pruning.jobs.store import JobStore
from tests.support.api_fixtures import publish_pruned
from tests.support.prune_requests import JOB
from tests.support.serving import local_api
from tests.support.waiting import wait_until

Headers = Mapping[str, str]


@pytest.fixture
def settings(data_dir: Path) -> ServeSettings:
    return ServeSettings(data_dir=data_dir, drain_s=0, preload=())


@pytest.fixture
def file(settings: ServeSettings) -> KeyFile:
    return KeyFile(settings.keys_file)


@pytest.fixture
def keys(file: KeyFile) -> dict[str, Headers]:
    """Two keys of one team, one of them an admin, and one of another tenant."""
    made = {
        "ann": file.create("ann", [Scope.JOBS], tenant="team"),
        "root": file.create("root", [Scope.ADMIN], tenant="team"),
        "eve": file.create("eve", [Scope.JOBS]),
    }
    return {name: {"Authorization": f"Bearer {key}"} for name, key in made.items()}


def post(client: TestClient, headers: Headers, **change: Any) -> Response:
    return client.post("/prune-jobs", json={**JOB, **change}, headers=headers)


def test_waiting_jobs_of_all_keys_of_a_tenant_count_together(
    client: TestClient, keys: Mapping[str, Headers], file: KeyFile, redis_client: redis.Redis
) -> None:
    file.change_quota("team", Quota(queued_jobs=2))
    first = post(client, keys["ann"]).json()
    assert post(client, keys["root"]).status_code == 202
    for name in ("ann", "root"):
        refused = post(client, {**keys[name], "Idempotency-Key": "k"})
        assert (refused.status_code, refused.json()["type"]) == (429, "queue-quota-reached")
        assert refused.headers["retry-after"] == "60"
        assert "'team'" in refused.json()["detail"]
    assert redis_client.keys("sleb:idempotency:*") == []
    assert {post(client, keys["eve"]).status_code for _ in range(3)} == {202}
    client.post(f"{first['urls']['self']}/cancel", headers=keys["ann"])
    assert post(client, keys["ann"]).status_code == 202


@pytest.fixture
def finish(data_dir: Path, job_store: JobStore) -> Callable[[str, str], int]:
    """Publish what a worker does for a job; returns the size of the files."""

    def publish(job_id: str, tenant: str) -> int:
        job_store.start(job_id, "w")
        publish_pruned(data_dir, job=job_id, spec=job_store.get(job_id).spec)
        path = data_dir / "checkpoints" / f"tiny@{job_id}"
        manifest = replace(read_manifest(path), tenant=tenant)
        (path / MANIFEST).write_text(manifest.to_json())
        return sum(entry.num_bytes for entry in manifest.files.values())

    return publish


@pytest.mark.slow
def test_checkpoints_that_would_not_fit_are_refused_until_one_is_deleted(
    client: TestClient,
    keys: Mapping[str, Headers],
    file: KeyFile,
    job_store: JobStore,
    finish: Callable[[str, str], int],
) -> None:
    needed = post(client, keys["ann"], dry_run=True).json()
    at_most = needed["checkpoint_bytes"] + needed["repair_bytes"]
    assert needed["repair_bytes"] > 0
    file.change_quota("team", Quota(checkpoint_bytes=at_most - 1))
    refused = post(client, keys["ann"])
    assert (refused.status_code, refused.json()["type"]) == (507, "checkpoint-quota-reached")
    assert "retry-after" not in refused.headers
    for part in (f"write {at_most} bytes", f"is {at_most - 1} bytes", "delete a job"):
        assert part in refused.json()["detail"]
    assert post(client, keys["eve"]).status_code == 202
    file.change_quota("team", Quota(checkpoint_bytes=at_most))
    first = post(client, keys["ann"]).json()
    assert f"may use {at_most}:" in post(client, keys["root"]).json()["detail"]
    size = finish(first["id"], "team")
    running = post(client, keys["ann"]).json()["detail"]  # what it has published counts once
    assert f"use 0 and its unfinished jobs and uploads may use {at_most}:" in running
    job_store.succeed(first["id"], f"tiny@{first['id']}")
    file.change_quota("team", Quota(checkpoint_bytes=size + at_most - 1))
    assert f"use {size} and" in post(client, keys["ann"]).json()["detail"]
    assert client.delete(first["urls"]["self"], headers=keys["ann"]).status_code == 204
    assert post(client, keys["ann"]).status_code == 202


def test_a_healing_needs_room_for_another_checkpoint(
    client: TestClient, keys: Mapping[str, Headers], file: KeyFile
) -> None:
    heal = {"num_tokens": 1000, "rank": 2, "batch_tokens": 64}
    needed = post(client, keys["ann"], heal=heal, dry_run=True).json()
    pruned = needed["checkpoint_bytes"] + needed["repair_bytes"]
    at_most = 2 * pruned + needed["heal"]["adapter_bytes"]  # both have repairs of every depth
    file.change_quota("team", Quota(checkpoint_bytes=at_most - 1))
    assert post(client, keys["ann"], heal=heal).status_code == 507
    file.change_quota("team", Quota(checkpoint_bytes=at_most))
    assert post(client, keys["ann"], heal=heal).status_code == 202


def test_a_job_tells_that_it_waits_for_another_of_its_tenant(
    client: TestClient, keys: Mapping[str, Headers], file: KeyFile, redis_client: redis.Redis
) -> None:
    """The service hands the limits on, so that workers need no key file."""
    file.change_quota("team", Quota(running_jobs=1))
    wait_until(lambda: redis_client.hgetall(RUNNING_LIMITS) == {b"team": b"1"}, "it is published")
    jobs = [post(client, keys[name]).json() for name in ("ann", "ann", "eve")]
    queue = PruneQueue(redis_client).rq
    taken = [LeasedQueue.lmove(redis_client, queue.key, None)[1].decode() for _ in range(2)]
    assert taken == [jobs[0]["id"], jobs[2]["id"]]
    conditions = client.get(jobs[1]["urls"]["self"], headers=keys["ann"]).json()["conditions"]
    assert [found["reason"] for found in conditions] == ["Quota"]
    assert conditions[0]["message"] == "the tenant already runs 1 job, the maximum of its quota"


def test_settings_are_the_quota_of_tenants_without_their_own(
    settings: ServeSettings,
    redis_url: str,
    redis_client: redis.Redis,
    keys: Mapping[str, Headers],
    file: KeyFile,
) -> None:
    limits: dict[str, Any] = {
        "tenant_queued_jobs": 1,
        "tenant_running_jobs": 3,
        "tenant_checkpoint_bytes": 10**9,
    }
    file.change_quota("team", Quota(queued_jobs=0, checkpoint_bytes=1))
    expected = {ANY_TENANT.encode(): b"3"}
    with local_api(settings, redis_url, **limits) as client:
        wait_until(lambda: redis_client.hgetall(RUNNING_LIMITS) == expected, "it is published")
        assert [post(client, keys["eve"]).status_code for _ in range(2)] == [202, 429]
        assert post(client, keys["ann"]).status_code == 507
    settings.keys_file.unlink()
    with local_api(settings, redis_url, **limits) as client:
        asked = [client.post("/prune-jobs", json=JOB) for _ in range(2)]
        assert [answer.status_code for answer in asked] == [202, 202]  # belong to no tenant
