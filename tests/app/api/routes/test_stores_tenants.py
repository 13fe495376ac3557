"""Checkpoints that are only in an object store, for tenants: whose they are, quotas, retention."""

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from app.auth.keys import KeyFile, Quota
from app.config import ServeSettings
from pruning.checkpoints.store import MANIFEST, CheckpointStore, read_manifest
from pruning.jobs.deletion import SteadyClock
from pruning.jobs.job import Sink
from pruning.jobs.outbox import SinkOutbox
from pruning.jobs.store import JobStore
from pruning.storage.location import open_store
from pruning.storage.store import ObjectStore
from pruning.store_url import StoreUrl
from pruning.worker.senders import CheckpointUpload
from pruning.worker.sinks import SinkThread
from tests.support.api_fixtures import publish_pruned
from tests.support.auth import Headers, team_keys
from tests.support.prune_requests import JOB
from tests.support.serving import local_api
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

GENERATE = {"prompt": "the dog", "max_new_tokens": 2}


@pytest.fixture(params=["file", "s3", "gcs"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"s3://{request.getfixturevalue('s3_bucket')}/sleb"
    if request.param == "gcs":
        return f"gs://{request.getfixturevalue('gcs_bucket')}/sleb"
    return f"file://{tmp_path}/store"


@pytest.fixture
def remote(url: str) -> ObjectStore:
    return open_store(StoreUrl.parse(url))


@pytest.fixture
def settings(tiny_models_dir: Path, tmp_path: Path, url: str) -> ServeSettings:
    """A service that shares no disk with the worker."""
    shutil.copytree(tiny_models_dir, tmp_path / "service" / "models")
    return ServeSettings(data_dir=tmp_path / "service", drain_s=0, preload=(), checkpoint_store=url)


@pytest.fixture
def file(settings: ServeSettings) -> KeyFile:
    return KeyFile(settings.keys_file)


@pytest.fixture
def keys(file: KeyFile) -> dict[str, Headers]:
    return team_keys(file)


@pytest.fixture
def client(
    settings: ServeSettings,
    redis_url: str,
    keys: Mapping[str, Headers],  # noqa: ARG001 - from its first request on, keys are required
) -> Iterator[TestClient]:
    with local_api(settings, redis_url) as client:
        yield client


class Worker:
    """Does what a worker does for a job, on a disk of its own, and uploads when it is asked to."""

    def __init__(self, data_dir: Path, client: redis.Redis, store: ObjectStore) -> None:
        self._data_dir = data_dir
        self._jobs = JobStore(client)
        checkpoints = CheckpointStore(data_dir / "checkpoints")
        upload = CheckpointUpload(store, checkpoints)
        self._sender = SinkThread(Sink.STORE, SinkOutbox(client), upload)

    def finish(self, job_id: str) -> int:
        """Returns the bytes of the checkpoint."""
        job = self._jobs.get(job_id)
        self._jobs.start(job_id, "w")
        publish_pruned(self._data_dir, job=job_id, spec=job.spec)
        path = self._data_dir / "checkpoints" / job.checkpoint_name
        manifest = replace(read_manifest(path), tenant=job.owner)
        (path / MANIFEST).write_text(manifest.to_json())
        self._jobs.succeed(job_id, job.checkpoint_name, sinks=[Sink.STORE])
        return sum(entry.num_bytes for entry in manifest.files.values())

    def upload(self) -> None:
        assert self._sender.send_next()


@pytest.fixture
def worker(tiny_models_dir: Path, redis_client: redis.Redis, remote: ObjectStore) -> Worker:
    return Worker(tiny_models_dir.parent, redis_client, remote)


def submit(client: TestClient, headers: Headers) -> dict[str, Any]:
    answer = client.post("/prune-jobs", json=JOB, headers=headers)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def listed(client: TestClient, headers: Headers) -> list[str]:
    return [model["id"] for model in client.get("/models", headers=headers).json()["data"]]


def test_what_a_store_has_is_its_tenants_and_admins(
    client: TestClient, keys: Mapping[str, Headers], worker: Worker, remote: ObjectStore
) -> None:
    job = submit(client, keys["ann"])
    worker.finish(job["id"])
    worker.upload()
    name = f"tiny@{job['id']}"
    wait_until(lambda: name in listed(client, keys["ann"]), "the checkpoint is listed")
    file = f"/prune-jobs/{job['id']}/checkpoints/model.safetensors"
    missing = f"tiny@prn-{'0' * 21}"
    for who, status in (("bob", 200), ("root", 200), ("eve", 404)):
        headers, is_seen = keys[who], status == 200
        assert (name in listed(client, headers)) is is_seen
        assert client.get(file, headers=headers).status_code == status
        for variant in (name, f"{name}-1", f"{name}+int8"):
            body = {**GENERATE, "model": variant}
            answer = client.post("/generate", json=body, headers=headers)
            assert answer.status_code == status, (who, variant, answer.text)
    refusal = client.post("/generate", json={**GENERATE, "model": name}, headers=keys["eve"])
    unknown = client.post("/generate", json={**GENERATE, "model": missing}, headers=keys["eve"])
    assert refusal.text.replace(name, missing) == unknown.text
    alias = client.put("/models/mine", json={"target": name}, headers=keys["eve"])
    assert alias.status_code == 403
    assert client.delete(job["urls"]["self"], headers=keys["eve"]).status_code == 404
    assert remote.versions().keys() == {name}
    assert client.delete(job["urls"]["self"], headers=keys["bob"]).status_code == 204
    assert (remote.versions(), remote.sizes(name)) == ({}, {})


def test_bytes_count_towards_the_quota_from_the_submission_to_the_deletion(
    client: TestClient,
    keys: Mapping[str, Headers],
    file: KeyFile,
    worker: Worker,
) -> None:
    """Also between the success and the upload, when the service knows no checkpoint."""
    needed = client.post("/prune-jobs", json={**JOB, "dry_run": True}, headers=keys["ann"]).json()
    at_most = needed["checkpoint_bytes"] + needed["repair_bytes"]
    file.change_quota("team", Quota(checkpoint_bytes=at_most))

    def told() -> str:
        answer = client.post("/prune-jobs", json=JOB, headers=keys["bob"])
        assert answer.status_code == 507, answer.text
        return str(answer.json()["detail"])

    job = submit(client, keys["ann"])
    pending = f"use 0 and its unfinished jobs and uploads may use {at_most}:"
    assert pending in told()
    size = worker.finish(job["id"])
    assert pending in told()
    worker.upload()
    assert f"use {size} and its unfinished jobs and uploads may use 0:" in told()
    assert client.delete(job["urls"]["self"], headers=keys["bob"]).status_code == 204
    submit(client, keys["bob"])


@pytest.mark.parametrize("is_uploaded", [True, False])
def test_retention_deletes_from_the_store(
    settings: ServeSettings,
    redis_url: str,
    job_store: JobStore,
    keys: Mapping[str, Headers],
    worker: Worker,
    remote: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    is_uploaded: bool,
) -> None:
    monkeypatch.setattr("app.api.lifespan.SWEEP_EVERY_S", 0.2)
    monkeypatch.setattr(SteadyClock, "now", lambda _: time.time())  # at once, not after a while
    with local_api(settings, redis_url) as client:
        job = submit(client, keys["ann"])
    worker.finish(job["id"])
    if is_uploaded:
        worker.upload()
    wait_until(lambda: finished_s_ago(job_store, job["id"]) > 1, "a second later")
    with local_api(settings, redis_url, keep_checkpoints_s=1.0, keep_jobs_s=1.0):
        if not is_uploaded:
            worker.upload()
        wait_until(lambda: not remote.versions(), "the checkpoint is gone")
        wait_until(lambda: job_store.list().jobs == (), "the record is gone")
    assert remote.sizes(f"tiny@{job['id']}") == {}


def finished_s_ago(store: JobStore, job_id: str) -> float:
    finished_at = store.get(job_id).finished_at
    assert finished_at is not None
    return time.time() - finished_at
