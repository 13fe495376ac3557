"""Deleting jobs: what is left of them in Redis and on disk, which is nothing."""

import shutil
from pathlib import Path

import pytest
import redis

from pruning.checkpoints.publish import publish
from pruning.checkpoints.staging import STAGING
from pruning.checkpoints.store import MANIFEST, CheckpointStore
from pruning.jobs.deletion import JobDeletion
from pruning.jobs.job import IllegalTransition, Job, JobNotFound, JobStatus
from pruning.jobs.store import JobStore
from tests.support.checkpoints import FILES, manifest_of, published, write
from tests.support.crashes import dies
from tests.support.job_lives import SPEC, ended

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


@pytest.fixture
def deletion(redis_client: redis.Redis, job_store: JobStore, root: Path) -> JobDeletion:
    return JobDeletion(redis_client, job_store, CheckpointStore(root))


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
        with pytest.raises(
            IllegalTransition, match=f"cannot delete job .*: its status is {status}; cancel it, or"
        ):
            deletion.delete(job.id)
    assert path.is_dir()
    assert job_store.get(job.id).status is JobStatus.CANCELLING


@pytest.mark.slow
def test_a_kill_at_any_step_is_finished_by_asking_again(
    deletion: JobDeletion, job_store: JobStore, redis_url: str, root: Path
) -> None:
    """And until then, a checkpoint is there as a whole or not, and does not outlive its record."""
    job = ended(job_store, JobStatus.SUCCEEDED)

    def delete() -> None:
        with redis.Redis.from_url(redis_url) as client:
            JobDeletion(client, JobStore(client), CheckpointStore(root)).delete(job.id)

    is_dead, step = True, 0
    while is_dead:
        step += 1
        path = published(root, job)
        is_dead = dies(delete, step)
        assert names_in(path) in ([], sorted([*FILES, MANIFEST]))
        if is_known(job_store, job):
            deletion.delete(job.id)
        assert not path.exists()
        job = ended(job_store, JobStatus.SUCCEEDED)
    assert step > 10


def is_known(store: JobStore, job: Job) -> bool:
    try:
        return store.get(job.id) == job
    except JobNotFound:
        return False


def names_in(path: Path) -> list[str]:
    return sorted(file.name for file in path.glob("*"))


@pytest.mark.parametrize("manifest", ["", "[]", manifest_of(spec_digest="other").to_json()])
def test_what_somebody_else_has_put_there_stays(
    deletion: JobDeletion, job_store: JobStore, root: Path, manifest: str
) -> None:
    """One that cannot be read is taken for the job's own."""
    job = ended(job_store, JobStatus.FAILED)
    path = root / job.checkpoint_name
    path.mkdir(parents=True)
    (path / "note.txt").write_text("mine")
    if manifest:
        (path / MANIFEST).write_text(manifest)
    deletion.delete(job.id)
    assert path.exists() == (manifest != "[]")


def test_each_side_can_go_alone(deletion: JobDeletion, job_store: JobStore, root: Path) -> None:
    job, other = (ended(job_store, JobStatus.SUCCEEDED) for _ in range(2))
    paths = [published(root, one) for one in (job, other)]
    for _ in range(2):
        deletion.unpublish(job.id)
    deletion.forget(other.id)
    assert [path.exists() for path in paths] == [False, True]
    assert job_store.list().jobs == (job,)


def test_a_worker_that_was_about_to_publish_a_deleted_job_cannot(
    deletion: JobDeletion, job_store: JobStore, root: Path
) -> None:
    job = ended(job_store, JobStatus.SUCCEEDED)
    path = published(root, job)

    def thawed_too_late() -> None:
        deletion.delete(job.id)

    shutil.rmtree(path)
    with pytest.raises(FileNotFoundError):
        publish(path, manifest_of(path.name, job.spec.digest()), write, thawed_too_late)
    assert CheckpointStore(root).names() == []
    assert names_in(root / STAGING) == []


def test_what_a_worker_publishes_while_its_job_is_deleted_goes_as_well(
    deletion: JobDeletion, job_store: JobStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ended(job_store, JobStatus.SUCCEEDED)
    forget = deletion._forget

    def publish_meanwhile(job: Job) -> None:
        forget(job)
        published(root, job)

    monkeypatch.setattr(deletion, "_forget", publish_meanwhile)
    deletion.delete(job.id)
    assert CheckpointStore(root).names() == []
