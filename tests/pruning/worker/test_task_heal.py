"""A job that heals, run in this process: what it publishes, how it goes on, what its end leaves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from pruning.checkpoints.store import CheckpointStore
from pruning.config import WorkerSettings
from pruning.healing.record import Step
from pruning.jobs.conditions import Conditions
from pruning.jobs.deletion import JobDeletion
from pruning.jobs.job import Job, JobStatus, Phase
from pruning.jobs.store import JobStore
from pruning.models.names import healed_name
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.heal import Heal
from pruning.spec.prune import PruneSpec, Repair
from pruning.worker.run import prune_job
from pruning.worker.task import JobObserver, execute

HEAL = Heal(num_tokens=60 * 32, rank=2, batch_tokens=32, steps_per_check=20, control=False)
Run = Callable[[Job, JobObserver], str]


@pytest.fixture
def settings(tmp_path: Path, tiny_models_dir: Path) -> WorkerSettings:
    assert tiny_models_dir == tmp_path / "models"
    return WorkerSettings(data_dir=tmp_path, threads=1)


@pytest.fixture
def job_id(job_store: JobStore, settings: WorkerSettings) -> str:
    text = settings.data_dir / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(400)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=8, path=str(text))
    spec = PruneSpec(
        "tiny", 1, calibration=calibration, evaluate=False, repair=Repair.RIDGE, heal=HEAL
    )
    return job_store.create(spec, conditions=Conditions(owner="team")).id


def run_of(settings: WorkerSettings, after: Callable[[int], object] = lambda _step: None) -> Run:
    """The real run, with a call after each step of the healing."""

    def run(job: Job, observer: JobObserver) -> str:
        record = observer.healing

        def healing(which: str, step: Step) -> None:
            record(which, step)
            after(step.number)

        observer.healing = healing  # type: ignore[method-assign]  # of this observer alone
        return prune_job(settings, job, observer, observer.earlier, observer.confirm)

    return run


def names(settings: WorkerSettings) -> list[str]:
    return CheckpointStore(settings.checkpoints_dir).names()


@pytest.mark.slow
def test_it_pauses_in_the_healing_goes_on_there_and_publishes_both(
    settings: WorkerSettings, job_store: JobStore, job_id: str, redis_client: redis.Redis
) -> None:
    name = job_store.get(job_id).checkpoint_name
    steps: list[int] = []

    def pause_at_25(number: int) -> None:
        steps.append(number)
        if number == 25:
            job_store.pause(job_id)

    execute(job_id, job_store, "a worker", run_of(settings, pause_at_25))
    job = job_store.get(job_id)
    assert job.status is JobStatus.PAUSED
    assert names(settings) == [name]
    assert steps == list(range(1, 26))  # the request is seen when step 26 is recorded
    job_store.resume(job_id)
    steps.clear()
    execute(job_id, job_store, "a worker", run_of(settings, steps.append))
    job = job_store.get(job_id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert job.pruned_model == healed_name(name)
    assert names(settings) == [name, healed_name(name)]
    store = CheckpointStore(settings.checkpoints_dir)
    assert [store.manifest(each).tenant for each in store.names()] == ["team", "team"]
    assert steps == list(range(21, 61))
    assert job.heal_progress is not None
    assert job.heal_progress.ratio == 1
    assert job.heal_progress.num_tokens == HEAL.num_tokens
    events = job_store.events(job_id, limit=1000)
    phases = [event.data["phase"] for event in events if "phase" in event.data]
    assert phases == [
        *("load", "calibrate", "search", "repair", "evaluate", "publish"),
        *("load", "calibrate", "heal", "load", "calibrate", "heal", "evaluate", "publish"),
    ]
    checks = [event.data["heal"]["num_tokens"] for event in events if "heal" in event.data]
    assert checks == [20 * 32, 40 * 32, 60 * 32]
    assert list(settings.checkpoints_dir.glob(".healing/*")) == []
    JobDeletion(redis_client, job_store, CheckpointStore(settings.checkpoints_dir)).delete(job_id)
    assert names(settings) == []


@pytest.mark.slow
def test_a_job_that_is_cancelled_while_it_heals_keeps_the_pruned_model_until_it_is_deleted(
    settings: WorkerSettings, job_store: JobStore, job_id: str, redis_client: redis.Redis
) -> None:
    name = job_store.get(job_id).checkpoint_name

    def cancel_at_21(number: int) -> None:
        if number == 21:
            job_store.cancel(job_id)

    execute(job_id, job_store, "a worker", run_of(settings, cancel_at_21))
    job = job_store.get(job_id)
    assert (job.status, job.phase) == (JobStatus.CANCELLED, Phase.HEAL)
    assert names(settings) == [name]
    assert len(list(settings.checkpoints_dir.glob(".healing/*"))) == 1
    JobDeletion(redis_client, job_store, CheckpointStore(settings.checkpoints_dir)).delete(job_id)
    assert names(settings) == []
    assert list(settings.checkpoints_dir.glob(".healing/*")) == []
