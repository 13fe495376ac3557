"""A real Valkey that cannot write its append-only file: all wait for it, and nothing is lost."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import redis

from app.config import ServeSettings
from app.server.valkey import _hold
from pruning.jobs.job import JobStatus
from pruning.jobs.queue import PruneQueue
from pruning.jobs.redis import JobStoreUnavailable, WritesRefused, connect, redis_errors_translated
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.job_waits import wait_for_status
from tests.support.prune_requests import JOB
from tests.support.serving import local_api
from tests.support.valkey_server import ValkeyServer, running_valkey
from tests.support.waiting import wait_until
from tests.support.worker_fixtures import LEASE_S, Workers
from tests.support.worker_process import HOLD

SPEC = PruneSpec(model="tiny", num_remove=1)
APPEND_ONLY = ("--appendonly", "yes", "--save", "")


@pytest.fixture
def server() -> Iterator[ValkeyServer]:
    with running_valkey(*APPEND_ONLY) as server:
        yield server
        server.free_disk()


def fill(server: ValkeyServer) -> None:
    server.fill_disk()
    with redis.Redis.from_url(server.url) as client:

        def refuses() -> bool:
            try:
                client.set("sleb:filler", "x", px=1)
            except redis.ResponseError as error:
                return "MISCONF" in str(error)
            return False

        wait_until(refuses, "writes refused")


def fill_memory(server: ValkeyServer) -> None:
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 1)


def free(server: ValkeyServer) -> None:
    server.free_disk()
    with redis.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", 0)


FILLED = pytest.mark.parametrize(
    ("fill", "word"), [(fill, "MISCONF"), (fill_memory, "OOM")], ids=["disk", "memory"]
)


def num_refused(client: redis.Redis, word: str) -> int:
    stats: Any = client.info("errorstats")
    return int(stats.get(f"errorstat_{word}", {"count": 0})["count"])


def queued(client: redis.Redis, *, is_transaction: bool) -> object:
    with client.pipeline(is_transaction) as pipeline:
        pipeline.get("a")
        pipeline.set("a", 1)
        return pipeline.execute()


COMMANDS: dict[str, Callable[[redis.Redis], object]] = {
    "a command": lambda client: client.set("a", 1),
    "a script": lambda client: client.eval("return redis.call('set', 'a', 1)", 0),
    "a transaction": lambda client: queued(client, is_transaction=True),
    "a pipeline": lambda client: queued(client, is_transaction=False),
    "a wait": lambda client: client.blmove("a", "a", 1, "LEFT", "LEFT"),
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("protocol", ["2", "3"])
@FILLED
def test_a_refused_write_is_an_error_of_the_connection(
    server: ValkeyServer,
    command: Callable[[redis.Redis], object],
    protocol: str,
    fill: Callable[[ValkeyServer], None],
    word: str,
) -> None:
    with connect(f"{server.url}?protocol={protocol}", num_retries=0) as client:
        client.set("kept", 1)
        fill(server)
        with pytest.raises(WritesRefused, match=r"AOF|maxmemory"):
            command(client)
        assert num_refused(client, word)
        with (
            pytest.raises(JobStoreUnavailable, match="free disk space"),
            redis_errors_translated(),
        ):
            command(client)
        assert client.get("kept") == b"1"
        free(server)
        wait_until(lambda: _succeeds(client), "writes accepted")


def _succeeds(client: redis.Redis) -> bool:
    try:
        return bool(client.set("a", 1))
    except WritesRefused:
        return False


def test_a_replica_refuses_writes_as_well(server: ValkeyServer) -> None:
    with connect(server.url, num_retries=0) as client, redis.Redis.from_url(server.url) as admin:
        admin.replicaof("127.0.0.1", 1)
        with pytest.raises(WritesRefused, match="read only replica"):
            client.set("a", 1)
        admin.replicaof("NO", "ONE")
        assert client.set("a", 1)


@pytest.mark.parametrize(
    ("fill", "word"),
    [(fill, "MISCONF"), pytest.param(fill_memory, "OOM", marks=pytest.mark.slow)],
    ids=["disk", "memory"],
)
def test_workers_wait_and_no_lease_is_lost(
    tmp_path: Path, server: ValkeyServer, fill: Callable[[ValkeyServer], None], word: str
) -> None:
    """Neither worker can renew anything for longer than a lease, and one of them is idle."""
    workers = Workers(tmp_path, server.url)
    with redis.Redis.from_url(server.url) as client:
        store = JobStore(client)
        first = store.create(SPEC)
        PruneQueue(client, task=HOLD).enqueue(first.id)
        try:
            processes = [workers.start(), workers.start()]
            workers.wait_for_children(1)
            wait_until(lambda: client.llen("rq:queue:prune") == 0, "the job taken")
            wait_until(lambda: client.scard("rq:workers") == 2, "both workers registered")
            fill(server)
            full_until = time.monotonic() + LEASE_S + 1
            before = num_refused(client, word)
            wait_until(lambda: time.monotonic() > full_until, "leases expired")
            assert num_refused(client, word) > before
            assert [process.poll() for process in processes] == [None, None]
            free(server)
            wait_until(lambda: _can_create(store), "the store writes")
            second = store.list(1).jobs[0]
            PruneQueue(client, task=HOLD).enqueue(second.id)
            workers.wait_for_children(2)
            workers.release()
            for job_id in (first.id, second.id):
                job = wait_for_status(store, job_id, JobStatus.SUCCEEDED)
                assert (job.attempt, job.num_lost) == (1, 0)
        finally:
            server.free_disk()
            workers.kill_all()
    assert "Traceback" not in workers.log()


def _can_create(store: JobStore) -> bool:
    try:
        return bool(store.create(SPEC))
    except redis.ResponseError:
        return False


def test_the_api_says_why_it_takes_no_jobs(
    server: ValkeyServer, tmp_path: Path, tiny_models_dir: Path
) -> None:
    assert tiny_models_dir == tmp_path / "models"
    with local_api(ServeSettings(data_dir=tmp_path, drain_s=0), server.url) as client:
        job = client.post("/prune-jobs", json=JOB).json()
        fill(server)
        for path in ("/prune-jobs", f"/prune-jobs/{job['id']}/cancel"):
            refused = client.post(path, json=JOB if path == "/prune-jobs" else None)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["type"] == "job-store-unavailable"
            assert "free disk space" in refused.json()["detail"]
        assert client.get(f"/prune-jobs/{job['id']}").json()["status"] == "queued"
        assert client.get("/health/ready").status_code == 200
        body = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 2}
        assert client.post("/generate", json=body).status_code == 200
        server.free_disk()
        wait_until(
            lambda: client.post("/prune-jobs", json=JOB).status_code == 202, "jobs are taken again"
        )


def test_the_embedded_server_is_found_while_its_disk_is_full() -> None:
    with TemporaryDirectory(prefix="sleb-valkey-") as directory:
        server = ValkeyServer(Path(directory), *APPEND_ONLY)
        with server.start():
            try:
                server.wait_until_it_answers()
                fill(server)
                holder = _hold(Path(directory) / "s")
                assert holder is not None
                holder.close()
            finally:
                server.process.terminate()
