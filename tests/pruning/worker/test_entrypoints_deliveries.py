"""What a real worker runs: its one task, also from an older version, and nothing else by name."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis

import tests.support
from pruning.jobs.job import JobStatus
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.spec.calibration import CalibrationSpec
from pruning.spec.prune import PruneSpec
from tests.support.waiting import wait_until
from tests.support.worker_fixtures import Workers
from tests.support.worker_process import HOLD

# all of Redis, as the last version that named the task by its path wrote it for one queued job
OLD_DELIVERY = Path(tests.support.__path__[0]) / "old_delivery.json"
OLD_JOB_ID = "prn-6612909d475cfe4217fbf"


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


def wait_for_end(store: JobStore, job_id: str) -> None:
    wait_until(lambda: store.get(job_id).status.is_final, f"{job_id} ended", timeout_s=90)


def test_a_job_that_an_older_version_has_queued_is_run(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore, tiny_models_dir: Path
) -> None:
    assert tiny_models_dir == workers.data_dir / "models"
    restore(redis_client, json.loads(OLD_DELIVERY.read_text()))
    workers.start()
    wait_for_end(job_store, OLD_JOB_ID)
    job = job_store.get(OLD_JOB_ID)
    assert (job.status, job.error, job.attempt) == (JobStatus.SUCCEEDED, None, 1)
    assert (workers.data_dir / "checkpoints" / job.checkpoint_name).is_dir()
    assert "refused" not in workers.log()
    started = [event.message for event in job_store.events(OLD_JOB_ID)][1]
    assert started.startswith("started by")  # and was not found without a delivery first


def test_a_delivery_that_names_other_code_is_refused_and_the_worker_goes_on(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore, tmp_path: Path
) -> None:
    spec = PruneSpec(model="tiny", num_remove=1, calibration=CalibrationSpec(num_samples=2))
    marker = tmp_path / "was-run"
    queue = PruneQueue(redis_client, task=HOLD)
    queue.rq.enqueue_call("os.system", args=(f"touch {marker}",), job_id="prn-unknown")
    recorded = job_store.create(spec)
    queue.rq.enqueue_call("os.system", args=(f"touch {marker}",), job_id=recorded.id)
    following = job_store.create(spec)
    queue.enqueue(following.id)
    workers.start()
    workers.wait_for_children(1)
    assert job_store.get(following.id).status is JobStatus.RUNNING
    workers.release()
    wait_for_end(job_store, following.id)
    wait_for_end(job_store, recorded.id)  # delivered again, under the right name
    refusal = "is refused: there is no task named 'os.system'"
    wait_until(lambda: workers.log().count(refusal) == 2, "both refused")
    assert job_store.get(recorded.id).num_lost == 0
    assert not marker.exists()
    assert not redis_client.exists("rq:job:prn-unknown")
