"""What is due goes, in one sweep or the next; everything else stays."""

import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import pytest
import redis

from pruning.checkpoints.publish import publish
from pruning.checkpoints.staging import STAGING
from pruning.checkpoints.store import MANIFEST, CheckpointStore
from pruning.jobs.deletion import JobDeletion, Retention, RetentionPeriods, SteadyClock
from pruning.jobs.job import Job, JobStatus, Sink
from pruning.jobs.keys import RECORD
from pruning.jobs.outbox import SinkOutbox
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.store import JobStore
from tests.support.checkpoints import FILES, manifest_of, published, write
from tests.support.clock import Clock
from tests.support.crashes import dies
from tests.support.job_lives import ended

pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

HOUR_S = 3600.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def retention(client: redis.Redis, root: Path, keep: RetentionPeriods) -> Retention:
    jobs, checkpoints = JobStore(client), CheckpointStore(root)
    deletion = JobDeletion(client, jobs, checkpoints)
    return Retention(keep, checkpoints, jobs, deletion, SteadyClock(0.0))


def old(
    client: redis.Redis, status: JobStatus = JobStatus.SUCCEEDED, sinks: Sequence[Sink] = ()
) -> Job:
    """One that has ended two hours ago, at once after it was created."""
    now = time.time
    with pytest.MonkeyPatch.context() as then:
        then.setattr(time, "time", lambda: now() - 2 * HOUR_S)
        return ended(JobStore(client), status, sinks)


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


@pytest.mark.parametrize("jump_s", [10 * 365 * 24 * HOUR_S, -HOUR_S])
def test_nothing_goes_while_the_clock_may_be_wrong(
    redis_client: redis.Redis,
    job_store: JobStore,
    root: Path,
    jump_s: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At the start of a machine, and behind a jump, also for what has long expired."""
    now, elapsed = Clock(), Clock()
    now.now = time.time()
    steady = SteadyClock(600.0, clock=now, monotonic=elapsed)
    jobs, checkpoints = JobStore(redis_client), CheckpointStore(root)
    keep = RetentionPeriods(24 * HOUR_S, 24 * HOUR_S)
    deletion = JobDeletion(redis_client, jobs, checkpoints)
    sweeping = Retention(keep, checkpoints, jobs, deletion, steady)
    published(root, job := old(redis_client))

    def minutes(number: int) -> None:
        for _ in range(number):
            now.now += 60.0
            elapsed.now += 60.0
            sweeping.sweep()

    minutes(20)
    now.now += jump_s
    minutes(10)
    now.now -= jump_s  # as the network has it
    minutes(20)
    assert job_store.list().jobs == (job,)
    assert CheckpointStore(root).names() == [job.checkpoint_name]
    assert sum("the clock jumped" in line for line in caplog.messages) == 2
    for day in range(3):
        now.now += 12 * HOUR_S  # while it was asleep
        sweeping.sweep()
        assert bool(job_store.list().jobs) or day > 1
        minutes(11)
    assert job_store.list().jobs == ()
    assert CheckpointStore(root).names() == []


def test_a_record_from_the_future_keeps_no_other(
    redis_client: redis.Redis, job_store: JobStore, root: Path
) -> None:
    first, *_ = [old(redis_client, JobStatus.FAILED) for _ in range(3)]
    redis_client.hset(RECORD.format(id=first.id), "created_at", "2e11")
    retention(redis_client, root, RetentionPeriods(jobs_s=HOUR_S)).sweep()
    assert job_store.list().jobs == ()


def test_a_record_stays_until_its_checkpoint_is_sent(
    redis_client: redis.Redis, job_store: JobStore, root: Path
) -> None:
    job = old(redis_client, JobStatus.SUCCEEDED, [Sink.STORE])
    sweeping = retention(redis_client, root, RetentionPeriods(jobs_s=HOUR_S))
    sweeping.sweep()
    outbox = SinkOutbox(redis_client)
    claim = outbox.claim(Sink.STORE)
    assert claim is not None
    assert claim.id == job.id
    outbox.sent(Sink.STORE, claim, "url", "uploaded")
    sweeping.sweep()
    assert job_store.list().jobs == ()


def test_leftovers_go_even_if_everything_else_is_kept_for_ever(root: Path) -> None:
    (root / STAGING / f"left-{uuid4().hex}").mkdir(parents=True)
    away = redis.Redis.from_url("unix:///nowhere/valkey.sock")
    with pytest.raises(JobStoreUnavailable):
        retention(away, root, RetentionPeriods()).sweep()
    assert list((root / STAGING).iterdir()) == []


@pytest.mark.slow
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
