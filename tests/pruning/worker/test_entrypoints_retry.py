"""Jobs whose workers are killed at one point until they fail: retried, they score nothing again."""

from dataclasses import replace

import pytest
import redis

from pruning.checkpoints.store import CheckpointStore, verify
from pruning.jobs.job import JobStatus
from pruning.jobs.queue import DELIVERIES, PruneQueue
from pruning.jobs.store import JobStore
from pruning.models.names import healed_name
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.heal import Heal
from pruning.spec.prune import PruneSpec, Repair
from tests.support.deaths import Death, plan_death
from tests.support.job_waits import LIMIT_S, wait_for_end
from tests.support.tiny_directory import write_tiny_model
from tests.support.waiting import wait_until
from tests.support.worker_fixtures import Workers

HEAL = Heal(
    num_tokens=2 * 32,
    rank=2,
    learning_rate=5e-4,  # two steps with the default one lead away from the dense model
    batch_tokens=32,
    steps_per_check=2,
    control=False,
)
DEATHS = {
    "repair": Death("pruning.pipeline:repair_order"),
    "gate": Death("pruning.pipeline:assess"),
    "verify": Death("pruning.pipeline:verify_portable"),
    "publish": Death("pruning.pipeline:copy_companions"),
    "heal": Death("pruning.healing.train:Training._step"),
}


def spec_of(workers: Workers) -> PruneSpec:
    data_dir = workers.data_dir
    write_tiny_model(data_dir / "models" / "tiny")
    text = data_dir / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(400)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=8, path=str(text))
    return PruneSpec(
        "tiny", 2, calibration=calibration, evaluate=False, repair=Repair.RIDGE, heal=HEAL
    )


def kill(workers: Workers, job_id: str, death: Death, number: int) -> None:
    """So many processes of the job, one after the other."""
    file = workers.data_dir / f"{job_id}.death"
    for _ in range(number):
        plan_death(workers.data_dir, job_id, death)
        wait_until(lambda: not file.exists(), "another process", timeout_s=LIMIT_S)


def resumed(store: JobStore, job_id: str) -> list[bool]:
    """Whether each search that went on had nothing left to evaluate."""
    return [
        event.data["evaluations_done"] == event.data["evaluations_total"]
        for event in store.events(job_id, limit=1000)
        if event.message.startswith("search resumes after")
    ]


def check(workers: Workers, client: redis.Redis, what: str) -> None:
    store, spec = JobStore(client), spec_of(workers)
    job = store.create(spec)
    plan_death(workers.data_dir, job.id, DEATHS[what])
    PruneQueue(client).enqueue(job.id)
    workers.start()
    kill(workers, job.id, DEATHS[what], DELIVERIES)
    failed = wait_for_end(store, job.id)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == "worker_lost"
    store.retry(job.id, spec)
    PruneQueue(client).enqueue(job.id)
    ended = wait_for_end(store, job.id)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    assert (ended.removed_blocks, ended.losses) == (failed.removed_blocks, failed.losses)
    assert all(resumed(store, job.id))
    said = [event.message for event in store.events(job.id, limit=1000)]
    assert said.count("search starts") == 1
    name = job.checkpoint_name
    checkpoints = CheckpointStore(workers.data_dir / "checkpoints")
    assert checkpoints.names() == [name, healed_name(name)]
    assert verify(checkpoints.path(name)).repaired_by == "ridge"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_job_that_died_in_its_repair_is_retried(
    workers: Workers, redis_client: redis.Redis
) -> None:
    check(workers, redis_client, "repair")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("what", ["gate", "verify", "publish", "heal"])
def test_a_job_that_died_behind_its_repair_is_retried(
    workers: Workers, redis_client: redis.Redis, what: str
) -> None:
    check(workers, redis_client, what)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_auto_goes_without_a_repair_that_has_killed_two_workers(
    workers: Workers, redis_client: redis.Redis
) -> None:
    """As the system kills a process that takes all memory."""
    store = JobStore(redis_client)
    job = store.create(replace(spec_of(workers), repair=Repair.AUTO, heal=None))
    PruneQueue(redis_client).enqueue(job.id)
    plan_death(workers.data_dir, job.id, DEATHS["repair"])
    workers.start()
    kill(workers, job.id, DEATHS["repair"], DELIVERIES)  # the third one does not come there
    ended = wait_for_end(store, job.id)
    assert ended.status is JobStatus.SUCCEEDED, ended.error
    assert ended.attempt == DELIVERIES
    warnings = [each.message for each in store.events(job.id, limit=1000) if each.level == "warn"]
    assert "the model is not repaired: 2 workers died while running it" in warnings
    assert verify(workers.data_dir / "checkpoints" / job.checkpoint_name).repair is None
