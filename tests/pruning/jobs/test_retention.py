"""What is due goes, in one sweep or the next; everything else stays."""

import time
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from pruning.checkpoints.publish import publish
from pruning.checkpoints.staging import STAGING
from pruning.checkpoints.store import MANIFEST, CheckpointStore
from pruning.jobs.deletion import JobDeletion
from pruning.jobs.job import Job, JobStatus, Sink
from pruning.jobs.keys import RECORD
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.retention import Retention, RetentionPeriods
from pruning.jobs.sinks import SinkOutbox
from pruning.jobs.store import JobStore
from tests.support.checkpoints import FILES, manifest_of, published, write
from tests.support.crashes import dies
from tests.support.job_lives import ended

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

HOUR_S = 3600.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def retention(client: redis.Redis, root: Path, keep: RetentionPeriods) -> Retention:
    jobs, checkpoints = JobStore(client), CheckpointStore(root)
    return Retention(keep, checkpoints, jobs, JobDeletion(client, jobs, checkpoints))


def aged(client: redis.Redis, job: Job, age_s: float) -> Job:
    """As if it had ended so long ago, at once after it was created."""
    then = str(time.time() - age_s)
    client.hset(RECORD.format(id=job.id), mapping={"created_at": then, "finished_at": then})
    return JobStore(client).get(job.id)


def old(client: redis.Redis, status: JobStatus = JobStatus.SUCCEEDED) -> Job:
    return aged(client, ended(JobStore(client), status), 2 * HOUR_S)


@pytest.mark.parametrize("keep", [RetentionPeriods(), RetentionPeriods(3 * HOUR_S, 3 * HOUR_S)])
def test_nothing_goes_before_its_time(
    redis_client: redis.Redis, root: Path, keep: RetentionPeriods
) -> None:
    job = old(redis_client)
    published(root, job)
    retention(redis_client, root, keep).sweep()
    assert JobStore(redis_client).list().jobs == (job,)
    assert CheckpointStore(root).names() == [job.checkpoint_name]


def test_ended_jobs_go_and_others_stay(
    redis_client: redis.Redis, job_store: JobStore, root: Path
) -> None:
    for status in (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED):
        old(redis_client, status)
    running = job_store.create(old(redis_client).spec)
    job_store.start(running.id, "w")
    redis_client.hset(RECORD.format(id=running.id), "created_at", "1")
    new = ended(job_store, JobStatus.FAILED)
    retention(redis_client, root, RetentionPeriods(jobs_s=HOUR_S)).sweep()
    assert {job.id for job in job_store.list().jobs} == {running.id, new.id}
    assert not redis_client.keys("sleb:job:*[!0-9a-f]*:told")


def test_a_checkpoint_that_is_kept_for_ever_outlives_its_record(
    redis_client: redis.Redis, job_store: JobStore, root: Path
) -> None:
    published(root, job := old(redis_client))
    retention(redis_client, root, RetentionPeriods(jobs_s=HOUR_S)).sweep()
    assert job_store.list().jobs == ()
    assert CheckpointStore(root).names() == [job.checkpoint_name]


def test_a_checkpoint_goes_and_its_record_stays(
    redis_client: redis.Redis, job_store: JobStore, root: Path
) -> None:
    published(root, job := old(redis_client))
    published(root, new := ended(job_store, JobStatus.SUCCEEDED))
    retention(redis_client, root, RetentionPeriods(checkpoints_s=HOUR_S)).sweep()
    assert CheckpointStore(root).names() == [new.checkpoint_name]
    assert job_store.list().jobs == (new, job)


def test_a_record_stays_while_its_checkpoint_is_to_go_later(
    redis_client: redis.Redis, job_store: JobStore, root: Path
) -> None:
    published(root, job := old(redis_client))
    old(redis_client, JobStatus.FAILED)
    retention(redis_client, root, RetentionPeriods(HOUR_S, 3 * HOUR_S)).sweep()
    assert job_store.list().jobs == (job,)
    retention(redis_client, root, RetentionPeriods(HOUR_S, HOUR_S)).sweep()
    assert job_store.list().jobs == ()
    assert CheckpointStore(root).names() == []


def test_checkpoints_of_no_job_or_of_somebody_else_stay(
    redis_client: redis.Redis, job_store: JobStore, root: Path
) -> None:
    """As those of ``sleb prune``, whatever they are called."""
    failed = old(redis_client, JobStatus.FAILED)
    names = ["mine", "tiny@mine", f"tiny@prn-{'0' * 21}", failed.checkpoint_name]
    for name in names:
        publish(root / name, manifest_of(name, "other"), write)
    retention(redis_client, root, RetentionPeriods(HOUR_S, HOUR_S)).sweep()
    assert CheckpointStore(root).names() == sorted(names)
    assert job_store.list().jobs == ()


def test_a_record_stays_until_its_checkpoint_is_sent(
    redis_client: redis.Redis, job_store: JobStore, root: Path
) -> None:
    job = aged(redis_client, ended(job_store, JobStatus.SUCCEEDED, [Sink.STORE]), 2 * HOUR_S)
    sweeping = retention(redis_client, root, RetentionPeriods(jobs_s=HOUR_S))
    sweeping.sweep()
    outbox = SinkOutbox(redis_client)
    claim = outbox.claim(Sink.STORE)
    assert claim is not None
    assert claim.job.id == job.id
    outbox.sent(Sink.STORE, claim, "url", "uploaded")
    sweeping.sweep()
    assert job_store.list().jobs == ()


def test_leftovers_go_even_if_everything_else_is_kept_for_ever(root: Path) -> None:
    (root / STAGING / f"left-{uuid4().hex}").mkdir(parents=True)
    away = redis.Redis.from_url("unix:///nowhere/valkey.sock")
    with pytest.raises(JobStoreUnavailable):
        retention(away, root, RetentionPeriods()).sweep()
    assert list((root / STAGING).iterdir()) == []


def test_a_sweep_that_is_killed_at_any_step_is_finished_by_the_next(
    redis_client: redis.Redis, job_store: JobStore, redis_url: str, root: Path
) -> None:
    def sweep() -> None:
        with redis.Redis.from_url(redis_url) as client:
            retention(client, root, RetentionPeriods(HOUR_S, HOUR_S)).sweep()

    is_dead, step = True, 0
    while is_dead:
        step += 1
        path = published(root, old(redis_client))
        is_dead = dies(sweep, step)
        assert {file.name for file in path.glob("*")} in (set(), {*FILES, MANIFEST})
        assert job_store.list().jobs or not path.exists()
        sweep()
        assert job_store.list().jobs == ()
        assert [file.name for file in root.iterdir()] == [STAGING]
        assert list((root / STAGING).iterdir()) == []
    assert step > 10
