"""Quotas at the creation of a job, on a real server: what counts towards them, and whose."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
import redis

from pruning.jobs.conditions import CheckpointQuotaReached, Conditions, JobQuota, QueueQuotaReached
from pruning.jobs.job import Job, JobError, JobStatus, Sink
from pruning.jobs.keys import RECORD
from pruning.jobs.outbox import SinkOutbox
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec

SPEC = PruneSpec(model="tiny", num_remove=1)


def create(
    store: JobStore, owner: str | None = "a", quota: JobQuota | None = None, num_bytes: int = 0
) -> Job:
    conditions = Conditions(
        owner=owner, quota=quota or JobQuota(queued_jobs=2), checkpoint_bytes=num_bytes
    )
    return store.create(SPEC, conditions=conditions)


def test_only_the_waiting_jobs_of_the_tenant_count(job_store: JobStore) -> None:
    for _ in range(3):
        create(job_store, None)  # a job without a tenant has no quota
    first, second = create(job_store).id, create(job_store).id
    for _ in range(2):
        create(job_store, "b")
    with pytest.raises(QueueQuotaReached, match="quota of tenant 'a' is reached"):
        create(job_store)
    job_store.start(first, "w")
    third = create(job_store).id
    for job_id in (second, third):
        with pytest.raises(QueueQuotaReached):
            create(job_store)
        job_store.cancel(job_id)
        create(job_store)
    assert create(job_store, quota=JobQuota()).status is JobStatus.QUEUED


def test_a_pause_makes_no_room_that_a_resume_would_exceed(job_store: JobStore) -> None:
    jobs = [create(job_store).id for _ in range(2)]
    for job_id in jobs:
        job_store.pause(job_id)
    with pytest.raises(QueueQuotaReached, match="queued or paused jobs"):
        create(job_store)
    for job_id in jobs:
        job_store.resume(job_id)
    assert job_store.counts()[JobStatus.QUEUED] == 2


def test_the_quota_holds_for_many_at_once(job_store: JobStore) -> None:
    def try_to_create(number: int) -> None:
        quota = JobQuota(queued_jobs=3, checkpoint_bytes=100)
        with suppress(QueueQuotaReached, CheckpointQuotaReached):
            create(job_store, "ab"[number % 2], quota, num_bytes=40 if number % 2 else 1)

    with ThreadPoolExecutor(max_workers=12) as clients:
        list(clients.map(try_to_create, range(40)))
    owners = [job.owner for job in job_store.list(100).jobs]
    assert (owners.count("a"), owners.count("b")) == (3, 2)


@pytest.mark.parametrize("stored", ["inf", "nan", "-1", "1e308", "0x7fffffff", "9" * 40, "", "a"])
def test_a_record_without_a_number_of_bytes_changes_no_quota(
    job_store: JobStore, redis_client: redis.Redis, stored: str
) -> None:
    quota = JobQuota(checkpoint_bytes=100)
    broken = create(job_store, "a", quota, num_bytes=40).id
    redis_client.hset(RECORD.format(id=broken), "checkpoint_bytes", stored)
    create(job_store, "a", quota, num_bytes=60)
    with pytest.raises(CheckpointQuotaReached, match="may use 60:"):
        create(job_store, "a", quota, num_bytes=41)


def test_published_pending_and_new_bytes_fit_together_or_the_job_is_refused(
    job_store: JobStore,
) -> None:
    quota = JobQuota(checkpoint_bytes=100, published_bytes=30)
    create(job_store, "b", quota, num_bytes=70)
    first = create(job_store, "a", quota, num_bytes=40).id
    with pytest.raises(CheckpointQuotaReached) as refused:
        create(job_store, "a", quota, num_bytes=31)
    for part in ("write 31 bytes", "use 30", "use 40", "is 100 bytes", "delete"):
        assert part in str(refused.value)
    second = create(job_store, "a", quota, num_bytes=30).id
    changes: tuple[Callable[[], Job], ...] = (
        lambda: job_store.start(first, "w"),
        lambda: job_store.pause(second),
        lambda: job_store.cancel(first),  # of a running one: its worker has not stopped yet
    )
    for change in changes:
        change()
        with pytest.raises(CheckpointQuotaReached):
            create(job_store, "a", quota, num_bytes=1)
    job_store.stopped(first)
    create(job_store, "a", quota, num_bytes=40)


def test_a_job_that_ends_while_another_is_checked_counts_if_it_has_published(
    job_store: JobStore,
) -> None:
    quota = JobQuota(checkpoint_bytes=100)
    succeeding, failing = (create(job_store, "a", quota, num_bytes=30).id for _ in range(2))
    looked = replace(quota, pending_jobs=job_store.pending_ids())
    for job_id in (succeeding, failing):
        job_store.start(job_id, "w")
    job_store.succeed(succeeding, "tiny@x")
    job_store.fail(failing, JobError("x", "y"))
    with pytest.raises(CheckpointQuotaReached, match="may use 30"):
        create(job_store, "a", looked, num_bytes=71)
    create(job_store, "a", looked, num_bytes=70)


def test_a_job_counts_until_its_checkpoint_is_sent(
    job_store: JobStore, redis_client: redis.Redis
) -> None:
    quota = JobQuota(checkpoint_bytes=100)
    job_id = create(job_store, "a", quota, num_bytes=60).id
    job_store.start(job_id, "w")
    job_store.succeed(job_id, "tiny@x", sinks=[Sink.STORE, Sink.MLFLOW])
    with pytest.raises(CheckpointQuotaReached):
        create(job_store, "a", quota, num_bytes=41)
    outbox = SinkOutbox(redis_client)
    claim = outbox.claim(Sink.STORE)
    assert claim is not None
    outbox.sent(Sink.STORE, claim, "url", "uploaded")
    create(job_store, "a", quota, num_bytes=41)
