"""The last question of a worker before its checkpoint becomes visible: is the job still mine?"""

from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import redis

from pruning.checkpoints.store import CheckpointStore
from pruning.jobs.deletion import JobDeletion
from pruning.jobs.job import Job, JobStatus, StopRequest
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.script import Change, StaleAttempt
from pruning.jobs.store import JobStore
from pruning.jobs.transitions import confirmed
from pruning.models.store import ModelStore
from pruning.pipeline import prune
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec
from pruning.worker import task
from pruning.worker.task import JobObserver, execute

SPEC = PruneSpec(
    "tiny", 1, calibration=CalibrationSpec(Dataset.SELF, num_samples=1, seqlen=8), evaluate=False
)


@pytest.fixture
def job_id(job_store: JobStore) -> str:
    return job_store.create(SPEC).id


def confirms_after(happen: Callable[[], object]) -> Callable[[Job, JobObserver], str]:
    def run(_job: Job, observer: JobObserver) -> str:
        happen()
        observer.confirm()
        return "tiny@x"

    return run


def test_the_job_of_its_worker_is_published(job_store: JobStore, job_id: str) -> None:
    num_events = len(job_store.events(job_id))
    execute(job_id, job_store, "worker", confirms_after(lambda: None))
    assert job_store.get(job_id).status is JobStatus.SUCCEEDED
    assert len(job_store.events(job_id)) == num_events + 2  # started, published


def test_a_cancelled_job_is_not_published(job_store: JobStore, job_id: str) -> None:
    execute(job_id, job_store, "worker", confirms_after(lambda: job_store.cancel(job_id)))
    assert job_store.get(job_id).status is JobStatus.CANCELLED


def test_a_job_that_another_worker_has_is_not_published(job_store: JobStore, job_id: str) -> None:
    run = confirms_after(lambda: job_store.start(job_id, "the next worker"))
    with pytest.raises(StaleAttempt):
        execute(job_id, job_store, "worker", run)
    assert job_store.get(job_id).status is JobStatus.RUNNING


def test_the_process_of_a_job_asks(
    job_store: JobStore,
    job_id: str,
    tiny_models_dir: Path,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tiny_models_dir.parent))
    monkeypatch.setenv("SLEB_REDIS_URL", redis_url)
    record = JobStore.record

    def cancelled_first(
        store: JobStore, job_id: str, change: Change, attempt: int
    ) -> StopRequest | None:
        if change == confirmed():
            store.cancel(job_id)
        return record(store, job_id, change, attempt)

    monkeypatch.setattr(JobStore, "record", cancelled_first)
    task.run_job(job_id)
    assert job_store.get(job_id).status is JobStatus.CANCELLED
    assert CheckpointStore(tiny_models_dir.parent / "checkpoints").names() == []


def test_the_process_of_a_job_asks_while_its_checkpoint_is_verified(
    job_store: JobStore,
    job_id: str,
    tiny_models_dir: Path,
    redis_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cancelled meanwhile, it does not wait for a process that was about to load the model."""
    monkeypatch.setenv("SLEB_DATA_DIR", str(tiny_models_dir.parent))
    monkeypatch.setenv("SLEB_REDIS_URL", redis_url)
    monkeypatch.setenv("SLEB_VERIFY", "process")
    monkeypatch.setattr("pruning.checkpoints.verify.POLL_S", 0.01)
    record, compared = JobStore.record, 0

    def cancelled_first(
        store: JobStore, job_id: str, change: Change, attempt: int
    ) -> StopRequest | None:
        nonlocal compared
        if change == confirmed():
            compared += len(psutil.Process().children())
            store.cancel(job_id)
        return record(store, job_id, change, attempt)

    monkeypatch.setattr(JobStore, "record", cancelled_first)
    before = len(psutil.Process().children())
    task.run_job(job_id)
    assert compared == before + 1
    assert job_store.get(job_id).status is JobStatus.CANCELLED
    assert CheckpointStore(tiny_models_dir.parent / "checkpoints").names() == []


class AwayStore(JobStore):
    """Whose Redis is away for the next ``failures`` confirmations."""

    failures = 0

    def record(self, job_id: str, change: Change, attempt: int | None = None) -> StopRequest | None:
        if self.failures and change == confirmed():
            self.failures -= 1
            raise JobStoreUnavailable("gone for a moment")
        return super().record(job_id, change, attempt)


def test_a_worker_waits_for_the_answer(redis_client: redis.Redis, job_id: str) -> None:
    store = AwayStore(redis_client)
    store.failures = 2
    execute(job_id, store, "worker", confirms_after(lambda: None))
    assert store.get(job_id).status is JobStatus.SUCCEEDED


def test_without_an_answer_the_job_has_not_failed(
    redis_client: redis.Redis, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is delivered again, as after any end of its process."""
    monkeypatch.setattr(task, "_NUM_RETRIES", 1)
    store = AwayStore(redis_client)
    store.failures = 2
    with pytest.raises(JobStoreUnavailable):
        execute(job_id, store, "worker", confirms_after(lambda: None))
    assert store.get(job_id).status is JobStatus.RUNNING


def test_of_a_job_that_was_deleted_meanwhile_nothing_is_published(
    redis_client: redis.Redis, job_store: JobStore, job_id: str, tiny_models_dir: Path
) -> None:
    """By a worker that was frozen when it had begun to publish, while another ended the job."""
    checkpoints = CheckpointStore(tiny_models_dir.parent / "checkpoints")

    def run(job: Job, observer: JobObserver) -> str:
        def thawed() -> None:
            next_ = job_store.start(job_id, "the next worker")
            job_store.succeed(job_id, "tiny@x", next_.attempt)
            JobDeletion(redis_client, job_store, checkpoints).delete(job_id)
            observer.confirm()

        name = job.checkpoint_name
        models = ModelStore(tiny_models_dir)
        target = checkpoints.path(name)
        prune(SPEC, name=name, target=target, models=models, observer=observer, confirm=thawed)
        raise AssertionError

    with pytest.raises(StaleAttempt, match="not found: it was deleted"):
        execute(job_id, job_store, "worker", run)
    assert checkpoints.names() == []
