"""Redis is killed while a job runs, and comes back with its append-only file: nothing is lost.

All of it is real: the server, a worker that searches, one that starts while the server is away,
and the API, which generates all the while.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from filelock import FileLock

from app.config import ServeSettings
from app.main import create_app
from app.server.valkey import embedded_valkey
from pruning.checkpoints.store import CheckpointStore
from pruning.spec.prune import PruneSpec
from tests.support.exposition import Scrape
from tests.support.long_search import EVALUATIONS, long_search
from tests.support.redis_fixtures import disorder
from tests.support.serving import LocalClient
from tests.support.waiting import wait_until
from tests.support.worker_fixtures import LEASE_S, Workers

KEY = {"Idempotency-Key": "the second"}


@contextmanager
def workers_of(data_dir: Path, redis_url: str) -> Iterator[Workers]:
    workers = Workers(data_dir, redis_url)
    try:
        yield workers
    finally:
        workers.kill_all()


class Api:
    def __init__(self, client: TestClient, spec: PruneSpec) -> None:
        self.client = client
        calibration = {
            "dataset": "file",
            "path": "text.txt",
            "num_samples": spec.calibration.num_samples,
            "seqlen": spec.calibration.seqlen,
        }
        self.body = {
            "model": "tiny",
            "num_remove": spec.num_remove,
            "evaluate": False,
            "calibration": calibration,
        }

    def submit(self, **headers: str) -> str:
        answer = self.client.post("/prune-jobs", json=self.body, headers=headers)
        assert answer.status_code == 202, answer.text
        job_id: str = answer.json()["id"]
        return job_id

    def job(self, job_id: str) -> dict[str, Any]:
        job: dict[str, Any] = self.client.get(f"/prune-jobs/{job_id}").json()
        return job

    def wait_for(self, job_id: str, num_evaluations: int) -> None:
        def is_there() -> bool:
            job = self.job(job_id)
            if job["progress"]["evaluations_done"] >= num_evaluations:
                return True
            assert not job["finished_at"], f"{job_id} has ended: {job['error']}"
            return False

        wait_until(is_there, f"{num_evaluations} evaluations", timeout_s=240)

    def wait_for_end(self, job_id: str) -> dict[str, Any]:
        wait_until(lambda: self.job(job_id)["finished_at"], f"{job_id} at its end", timeout_s=240)
        return self.job(job_id)

    def check_without_store(self, job_id: str) -> None:
        """It generates, it is ready, and it says why it does nothing about jobs."""
        body = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 2}
        assert self.client.post("/generate", json=body).status_code == 200
        assert self.client.get("/health/ready").status_code == 200
        own = f"/prune-jobs/{job_id}"
        requests = [("GET", "/prune-jobs"), ("POST", "/prune-jobs"), ("GET", own), ("DELETE", own)]
        requests += [("POST", f"{own}/cancel"), ("GET", f"{own}/events")]
        requests += [("GET", f"{own}/checkpoints")]
        for method, path in requests:
            json = self.body if (method, path) == ("POST", "/prune-jobs") else None
            answer = self.client.request(method, path, json=json)
            assert answer.status_code == 503, (method, path, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["type"].endswith("job-store-unavailable")
            assert int(answer.headers["retry-after"]) >= 1
        assert Scrape(self.client.get("/metrics").text).value("sleb_job_store_up") == 0


@pytest.fixture
def spec(tmp_path: Path) -> PruneSpec:
    return long_search(tmp_path, num_samples=80)


def found(data_dir: Path, job: dict[str, Any]) -> tuple[object, ...]:
    checkpoints = CheckpointStore(data_dir / "checkpoints")
    manifest = checkpoints.manifest(job["pruned_model"])
    record = (checkpoints.path(job["pruned_model"]) / "removal.json").read_text()
    return manifest.removed_blocks, manifest.quality.losses, record


def kill_server(client: redis.Redis) -> None:
    # what is not synced yet is lost with the server, and everysec takes a second or two over that
    synced: Any = client.waitaof(1, 0, 10_000)
    assert synced[0] == 1
    os.kill(int(client.info("server")["process_id"]), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_redis_that_is_killed_costs_no_job_and_no_removal(tmp_path: Path, spec: PruneSpec) -> None:
    settings = ServeSettings(data_dir=tmp_path, drain_s=0)
    with (
        embedded_valkey(tmp_path) as url,
        redis.Redis.from_url(url) as redis_client,
        workers_of(tmp_path, url) as workers,
        LocalClient(create_app(settings, redis_url=url)) as client,
    ):
        wait_until(lambda: client.get("/health/ready").status_code == 200, "the API is ready")
        api = Api(client, spec)
        first = api.submit()
        workers.start()
        api.wait_for(first, 1)
        second, third = api.submit(**KEY), api.submit()
        client.post(f"/prune-jobs/{third}/cancel")
        api.wait_for(first, EVALUATIONS // 4)
        with FileLock(tmp_path / "valkey" / "start.lock"):  # else it would be back at once
            kill_server(redis_client)
            back_at = time.monotonic() + LEASE_S + 1  # by then no lease is valid
            workers.start()
            while time.monotonic() < back_at:
                api.check_without_store(first)
        jobs = {job_id: api.wait_for_end(job_id) for job_id in (third, second, first)}
        assert [job["id"] for job in client.get("/prune-jobs").json()["data"]] == list(jobs)
        assert api.submit(**KEY) == second
        statuses = [job["status"] for job in jobs.values()]
        assert statuses == ["cancelled", "succeeded", "succeeded"]
        assert [job["attempt"] for job in jobs.values()] == [0, 1, 1]  # no job ran again
        assert found(tmp_path, jobs[first]) == found(tmp_path, jobs[second])
        workers.kill_all()
        assert disorder(redis_client) == []
