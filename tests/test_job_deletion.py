"""Deleting jobs: what is left of them in Redis and on disk, which is nothing."""

from pathlib import Path

import pytest
import redis

from pruning.checkpoints import MANIFEST, CheckpointStore
from pruning.job import IllegalTransition, Job, JobError, JobStatus
from pruning.job_deletion import JobDeletion
from pruning.jobs import JobNotFound, JobStore
from pruning.spec import PruneSpec

SPEC = PruneSpec(model="tiny", num_remove=2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def deletion(redis_client: redis.Redis, job_store: JobStore, root: Path) -> JobDeletion:
    return JobDeletion(redis_client, job_store, CheckpointStore(root))


def ended(store: JobStore, status: JobStatus) -> Job:
    job_id = store.create(SPEC).id
    if status is JobStatus.CANCELLED:
        return store.cancel(job_id)
    store.start(job_id, "w")
    if status is JobStatus.FAILED:
        store.fail(job_id, JobError("x", "y"))
    else:
        store.succeed(job_id, f"tiny@{job_id}")
    return store.get(job_id)


def published(root: Path, job: Job) -> Path:
    path = root / job.checkpoint_name
    path.mkdir(parents=True)
    (path / MANIFEST).write_text("{}")
    return path


@pytest.mark.parametrize("status", [status for status in JobStatus if status.is_final])
def test_nothing_is_left_of_an_ended_job(
    deletion: JobDeletion,
    job_store: JobStore,
    redis_client: redis.Redis,
    root: Path,
    status: JobStatus,
) -> None:
    published(root, job := ended(job_store, status))
    assert job.status is status
    deletion.delete(job.id)
    assert redis_client.keys("sleb:*") == []
    assert [path for path in root.rglob("*") if path.name != ".staging"] == []
    with pytest.raises(JobNotFound):
        deletion.delete(job.id)


def test_others_stay_as_they_are(deletion: JobDeletion, job_store: JobStore, root: Path) -> None:
    gone, other = (ended(job_store, JobStatus.SUCCEEDED) for _ in range(2))
    paths = [published(root, job) for job in (gone, other)]
    deletion.delete(gone.id)
    assert job_store.list().jobs == (other,)
    assert [path.exists() for path in paths] == [False, True]
    assert job_store.counts()[JobStatus.SUCCEEDED] == 1


def test_a_job_that_has_not_ended_is_left_alone(
    deletion: JobDeletion, job_store: JobStore, root: Path
) -> None:
    path = published(root, job := job_store.create(SPEC))
    for status in (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELLING):
        if status is JobStatus.RUNNING:
            job_store.start(job.id, "w")
        elif status is JobStatus.CANCELLING:
            job_store.cancel(job.id)
        with pytest.raises(IllegalTransition, match=f"{status}, which does not allow: delete"):
            deletion.delete(job.id)
    assert path.is_dir()
    assert job_store.get(job.id).status is JobStatus.CANCELLING


def test_what_was_interrupted_is_finished_by_asking_again(
    deletion: JobDeletion, job_store: JobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = published(root, job := ended(job_store, JobStatus.SUCCEEDED))

    def dies(**_given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(deletion, "_script", dies)
        with pytest.raises(KeyboardInterrupt):
            deletion.delete(job.id)
    assert not path.exists()
    assert job_store.get(job.id) == job
    deletion.delete(job.id)
    assert job_store.list().jobs == ()
