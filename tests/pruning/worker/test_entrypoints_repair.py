"""Jobs of real workers that are killed, cancelled or paused in the phase of the repair."""

import os
import signal
from pathlib import Path

import psutil
import pytest
import redis

from pruning.checkpoints.store import CheckpointStore, verify
from pruning.jobs.job import Job, JobStatus, Phase
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair
from tests.support.job_waits import wait_for_job, wait_for_status
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until
from tests.support.worker_fixtures import Workers, is_alive

NUM_REMOVE = 3


def submit(workers: Workers, client: redis.Redis) -> Job:
    """A short search, and a repair of some seconds on one thread."""
    data_dir = workers.data_dir
    write_tiny_model(data_dir / "models" / "tiny", num_blocks=10)
    text = data_dir / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(9000)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=32, seqlen=128, path=str(text))
    spec = PruneSpec(
        "tiny", NUM_REMOVE, calibration=calibration, evaluate=False, repair=Repair.RIDGE
    )
    job = JobStore(client).create(spec)
    PruneQueue(client).enqueue(job.id)
    return job


def wait_for_repair(store: JobStore, job_id: str) -> Job:
    def is_repairing(job: Job) -> bool:
        return job.phase is Phase.REPAIR and job.repair_progress is not None

    return wait_for_job(store, job_id, is_repairing, "in its repair")


def child_of(parent: int) -> int:
    [child] = psutil.Process(parent).children()
    return int(child.pid)


def names(data_dir: Path) -> list[str]:
    return CheckpointStore(data_dir / "checkpoints").names()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_that_is_killed_in_the_repair_is_followed_by_one_that_repeats_it_alone(
    workers: Workers, redis_client: redis.Redis
) -> None:
    store, job = JobStore(redis_client), submit(workers, redis_client)
    parent = workers.start()
    found = wait_for_repair(store, job.id)
    assert found.estimated_finish is not None
    os.kill(child_of(parent.pid), signal.SIGKILL)
    wait_for_job(store, job.id, lambda job: job.attempt == 2, "in another attempt")
    assert names(workers.data_dir) == []
    ended = wait_for_status(store, job.id, JobStatus.SUCCEEDED)
    assert ended.removed_blocks == found.removed_blocks
    assert ended.repair_progress is not None
    assert ended.repair_progress.ratio == 1
    assert names(workers.data_dir) == [job.checkpoint_name]
    manifest = verify(workers.data_dir / "checkpoints" / job.checkpoint_name)
    assert manifest.repair is not None
    assert len(manifest.repair) == NUM_REMOVE
    resumed = [
        event.data["evaluations_done"] == event.data["evaluations_total"]
        for event in store.events(job.id, limit=1000)
        if event.message.startswith("search resumes after")
    ]
    assert resumed == [True]  # no candidate was scored again


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_job_is_paused_in_the_repair_and_another_is_cancelled(
    workers: Workers, redis_client: redis.Redis
) -> None:
    store, job = JobStore(redis_client), submit(workers, redis_client)
    parent = workers.start()
    wait_for_repair(store, job.id)
    child = child_of(parent.pid)
    store.pause(job.id)
    paused = wait_for_status(store, job.id, JobStatus.PAUSED)
    wait_until(lambda: not is_alive(child), "the child gone")
    assert (paused.phase, paused.repair_progress, paused.estimated_finish) == (None, None, None)
    store.resume(job.id)
    PruneQueue(redis_client).enqueue(job.id)
    wait_for_repair(store, job.id)
    store.cancel(job.id)
    wait_for_status(store, job.id, JobStatus.CANCELLED)
    assert names(workers.data_dir) == []
