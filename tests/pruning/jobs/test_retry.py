"""A job that has ended without a result is queued again, with its search and its limits."""

from dataclasses import replace
from pathlib import Path

import pytest
import redis

from pruning.checkpoints.store import CheckpointStore
from pruning.jobs import transitions
from pruning.jobs.conditions import (
    CheckpointQuotaReached,
    Conditions,
    JobQuota,
    QueueFull,
    QueueQuotaReached,
)
from pruning.jobs.deletion import JobDeletion
from pruning.jobs.job import (
    IllegalTransition,
    JobError,
    JobNotFound,
    JobStatus,
    Webhook,
    WebhookEvent,
)
from pruning.jobs.keys import MESSAGES
from pruning.jobs.script import StaleAttempt
from pruning.jobs.store import JobStore
from pruning.removal import decide
from pruning.search.state import ScoredCandidate, SearchPlan, SearchState
from pruning.spec.prune import PruneSpec, Repair
from tests.support.job_lives import SPEC, ended, messages

PLAN = SearchPlan("d1g", 2)
FIRST = decide(1, 2.0, {1: [2.5, 2.25], 2: [3.0, 2.0]})
OTHER = replace(SPEC, repair=Repair.NONE)


def failed_with_a_search(store: JobStore) -> str:
    job = store.create(SPEC)
    attempt = store.start(job.id, "first").attempt
    store.record(job.id, transitions.searching(PLAN, 0, 9), attempt)
    store.record(job.id, transitions.removed([FIRST]), attempt)
    store.record(job.id, transitions.evaluated(3, 9, [ScoredCandidate("2", 2, [1.5])]), attempt)
    store.fail(job.id, JobError("out_of_memory", "too little"), attempt)
    return job.id


def test_it_is_queued_with_other_settings_and_keeps_what_it_has_found(
    job_store: JobStore,
) -> None:
    job_id = failed_with_a_search(job_store)
    before = job_store.search_state(job_id)
    job = job_store.retry(job_id, OTHER)
    assert (job.status, job.spec) == (JobStatus.QUEUED, OTHER)
    assert (job.error, job.finished_at, job.worker, job.phase) == (None, None, None, None)
    assert job.removed_blocks == (FIRST.block,)
    assert job.progress.evaluations_done == 3
    assert job_store.search_state(job_id) == before
    assert before == SearchState(PLAN, (FIRST,), scored={"2": {2: [1.5]}})
    assert messages(job_store, job_id)[-1] == "retried"
    assert job_store.start(job_id, "second").attempt == 2
    with pytest.raises(StaleAttempt):  # of the worker that has failed
        job_store.record(job_id, transitions.evaluated(4, 9), 1)


def test_deaths_and_shortages_of_before_do_not_count(job_store: JobStore) -> None:
    job = job_store.create(SPEC)
    job_store.start(job.id, "w")
    job_store.short_of_memory(job.id, "2 GiB")
    for _ in range(2):
        job_store.start(job.id, "w")
        job_store.requeue(job.id, "its worker died", is_lost=True)
    job_store.fail(job.id, JobError("worker_lost", "two"))
    again = job_store.retry(job.id, SPEC)
    assert (again.num_lost, again.num_halvings) == (0, 0)


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELLED])
def test_both_ends_without_a_result_allow_it(job_store: JobStore, status: JobStatus) -> None:
    job = ended(job_store, status)
    assert job_store.retry(job.id, SPEC).status is JobStatus.QUEUED
    with pytest.raises(
        IllegalTransition, match=r"cannot retry .* expected a failed or cancelled job"
    ):
        job_store.retry(job.id, OTHER)
    assert job_store.get(job.id).spec == SPEC


def test_a_result_is_not_made_again(job_store: JobStore) -> None:
    job = ended(job_store, JobStatus.SUCCEEDED)
    with pytest.raises(IllegalTransition):
        job_store.retry(job.id, OTHER)
    assert job_store.get(job.id) == job


def test_it_counts_towards_the_limits_as_a_new_job_does(job_store: JobStore) -> None:
    job = ended(job_store, JobStatus.FAILED)
    waiting = job_store.create(SPEC, conditions=Conditions(owner="team"))
    quota = JobQuota(queued_jobs=1)
    with pytest.raises(QueueFull):
        job_store.retry(job.id, OTHER, Conditions(max_queued=1))
    with pytest.raises(QueueQuotaReached):
        job_store.retry(job.id, OTHER, Conditions(owner="team", quota=quota))
    small = Conditions(owner="team", quota=JobQuota(checkpoint_bytes=10), checkpoint_bytes=11)
    with pytest.raises(CheckpointQuotaReached):
        job_store.retry(job.id, OTHER, small)
    assert job_store.get(job.id) == job
    job_store.cancel(waiting.id)
    job_store.retry(job.id, OTHER, Conditions(max_queued=1, owner="team", quota=quota))


def test_its_webhook_hears_of_it(job_store: JobStore, redis_client: redis.Redis) -> None:
    webhook = Webhook("https://example.org/", (WebhookEvent.QUEUED,))
    job = job_store.create(SPEC, webhook=webhook)
    job_store.cancel(job.id)
    key = MESSAGES.format(id=job.id)
    assert redis_client.hlen(key) == 0
    job_store.retry(job.id, SPEC)
    assert redis_client.hlen(key) == 1


def test_a_deletion_that_came_later_leaves_the_queued_job_alone(
    job_store: JobStore, redis_client: redis.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ended(job_store, JobStatus.FAILED)
    deletion = JobDeletion(redis_client, job_store, CheckpointStore(tmp_path))
    get = JobStore.get

    def retried_behind(store: JobStore, job_id: str) -> object:
        found = get(store, job_id)
        monkeypatch.undo()
        store.retry(job_id, SPEC)
        return found

    monkeypatch.setattr(JobStore, "get", retried_behind)
    with pytest.raises(IllegalTransition, match="its status is queued"):
        deletion.delete(job.id)
    assert job_store.get(job.id).status is JobStatus.QUEUED
    assert job_store.ids(JobStatus.QUEUED) == (job.id,)


def test_a_deleted_job_is_not_retried(job_store: JobStore) -> None:
    with pytest.raises(JobNotFound):
        job_store.retry("prn-" + "0" * 21, SPEC)


def test_a_spec_names_its_search_without_what_follows() -> None:
    spec = PruneSpec("tiny", num_remove=2)
    behind = replace(spec, repair=Repair.SCALE, evaluate=False, tasks=("piqa",))
    assert spec.search_digest() == behind.search_digest()
    for other in (
        replace(spec, num_remove=3),
        replace(spec, model="other"),
        replace(spec, dtype="float16"),
        replace(spec, protect_last=2),
    ):
        assert other.search_digest() != spec.search_digest()
