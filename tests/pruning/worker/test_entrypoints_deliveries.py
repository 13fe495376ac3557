"""What a real worker runs: its one task, also from an older version, and nothing else by name."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import redis

import tests.support
from pruning.jobs.job import JobStatus
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec
from tests.support.job_waits import wait_for_end, wait_for_status
from tests.support.waiting import wait_until
from tests.support.worker_fixtures import Workers
from tests.support.worker_process import HOLD

# all of Redis, as the last version that named the task by its path wrote it for one queued job
OLD_DELIVERY = Path(tests.support.__path__[0]) / "old_delivery.json"
OLD_JOB_ID = "prn-6612909d475cfe4217fbf"
SPEC = PruneSpec(
    model="tiny", num_remove=1, calibration=CalibrationSpec(Dataset.SELF, num_samples=2)
)


def restore(client: redis.Redis, dump: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the keys of a dump; what is not ASCII is ``{"base64": ...}`` in it."""
    for key, entry in dump.items():
        value = entry["value"]
        if entry["type"] == "hash":
            client.hset(key, mapping={name: _plain(text) for name, text in value.items()})
        elif entry["type"] == "list":
            client.rpush(key, *value)
        elif entry["type"] == "set":
            client.sadd(key, *value)
        elif entry["type"] == "zset":
            client.zadd(key, dict(value))
        else:
            assert entry["type"] == "stream"
            for event_id, fields in value:
                client.xadd(key, fields, id=event_id)


def _plain(value: str | Mapping[str, str]) -> str | bytes:
    return value if isinstance(value, str) else base64.b64decode(value["base64"])


def test_a_job_that_an_older_version_has_queued_is_run(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore, tiny_models_dir: Path
) -> None:
    assert tiny_models_dir == workers.data_dir / "models"
    restore(redis_client, json.loads(OLD_DELIVERY.read_text()))
    workers.start()
    job = wait_for_end(job_store, OLD_JOB_ID)
    assert (job.status, job.error, job.attempt) == (JobStatus.SUCCEEDED, None, 1)
    assert (workers.data_dir / "checkpoints" / job.checkpoint_name).is_dir()
    assert "refused" not in workers.log()
    started = [event.message for event in job_store.events(OLD_JOB_ID)][1]
    assert started.startswith("started by")  # and was not found without a delivery first


@pytest.mark.slow
def test_a_delivery_that_names_other_code_is_refused_and_the_worker_goes_on(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore, tmp_path: Path
) -> None:
    marker = tmp_path / "was-run"
    queue = PruneQueue(redis_client, task=HOLD)
    queue.rq.enqueue_call("os.system", args=(f"touch {marker}",), job_id="prn-unknown")
    recorded = job_store.create(SPEC)
    queue.rq.enqueue_call("os.system", args=(f"touch {marker}",), job_id=recorded.id)
    following = job_store.create(SPEC)
    queue.enqueue(following.id)
    workers.start()
    workers.wait_for_children(1)
    assert job_store.get(following.id).status is JobStatus.RUNNING
    workers.release()
    wait_for_status(job_store, following.id, JobStatus.SUCCEEDED)
    wait_for_end(job_store, recorded.id)  # delivered again, under the right name
    refusal = "is refused: there is no task named 'os.system'"
    wait_until(lambda: workers.log().count(refusal) == 2, "both refused")
    assert job_store.get(recorded.id).num_lost == 0
    assert not marker.exists()
    assert not redis_client.exists("rq:job:prn-unknown")


def test_deliveries_with_unreadable_fields_are_refused_and_the_worker_goes_on(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore
) -> None:
    queue = PruneQueue(redis_client, task=HOLD)
    recorded = job_store.create(SPEC)
    queue.enqueue(recorded.id)
    redis_client.hset(f"rq:job:{recorded.id}", "timeout", "soon")
    spoilt = {"status": "bogus", "created_at": "yesterday", "retries_left": "many", "data": ""}
    job_ids = [f"prn-{number:021x}" for number, _ in enumerate(spoilt)]
    for job_id, (field, value) in zip(job_ids, spoilt.items(), strict=True):
        queue.enqueue(job_id)
        redis_client.hset(f"rq:job:{job_id}", field, value)
    redis_client.hdel(f"rq:job:{job_ids[-1]}", "data")
    following = job_store.create(SPEC)
    queue.enqueue(following.id)
    workers.release()
    workers.start()
    wait_for_status(job_store, following.id, JobStatus.SUCCEEDED)
    for job_id in (recorded.id, *job_ids):
        refusal = f"delivery '{job_id}' is refused: its data cannot be read"
        assert workers.log().count(refusal) == 1
    assert not redis_client.exists(*(f"rq:job:{job_id}" for job_id in job_ids))
    # The recorded job is there, too, while it is delivered again
    left = "rq:queue:prune:intermediate"
    wait_until(lambda: not redis_client.exists(left), "no delivery is left")
    again = "delivered again, because its delivery was missing"
    wait_until(lambda: again in messages(job_store, recorded.id), "the recorded job is delivered")


def messages(store: JobStore, job_id: str) -> list[str]:
    return [event.message for event in store.events(job_id)]


def test_queue_entries_that_are_no_ids_are_removed_and_the_worker_goes_on(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore
) -> None:
    entries = [b"../etc", b"\xff\xfe", b"", b"prn-0:1"]
    redis_client.rpush("rq:queue:prune", *entries)
    for entry in entries:
        redis_client.hset(b"rq:job:" + entry, "status", "queued")
    queue = PruneQueue(redis_client, task=HOLD)
    following = job_store.create(SPEC)
    queue.enqueue(following.id)
    workers.release()
    workers.start()
    wait_for_status(job_store, following.id, JobStatus.SUCCEEDED)
    assert workers.log().count("is refused: it is not the id of a job") == len(entries)
    assert not redis_client.exists(*(b"rq:job:" + entry for entry in entries))
    assert not redis_client.exists("rq:queue:prune", "rq:queue:prune:intermediate")
