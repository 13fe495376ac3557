"""The states of a job on a real server: who may move it where, and who may write to it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pruning.jobs import transitions
from pruning.jobs.job import TRANSITIONS, IllegalTransition, Job, JobStatus, Phase, StopRequest
from pruning.jobs.script import Change, StaleAttempt
from pruning.jobs.store import JobStore
from tests.support.job_lives import CHANGES, ERROR, SPEC, removals

# ---- cancelling, losing and taking over


def test_a_waiting_job_is_cancelled_at_once(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    job = job_store.cancel(job_id)
    assert job.status is JobStatus.CANCELLED
    assert job.finished_at is not None
    with pytest.raises(IllegalTransition, match="is cancelled"):
        job_store.start(job_id, "w")


def test_a_running_job_is_asked_to_stop_and_its_worker_hears_of_it(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    attempt = job_store.start(job_id, "w").attempt
    assert job_store.record(job_id, transitions.evaluated(1, 9), attempt) is None
    assert job_store.cancel(job_id).status is JobStatus.CANCELLING
    assert job_store.cancel(job_id).status is JobStatus.CANCELLING
    assert job_store.record(job_id, transitions.evaluated(2, 9), attempt) is StopRequest.CANCEL
    with pytest.raises(IllegalTransition):
        job_store.start(job_id, "another")
    assert job_store.stopped(job_id, attempt) is JobStatus.CANCELLED
    with pytest.raises(IllegalTransition):
        job_store.cancel(job_id)


def test_a_cancel_that_comes_after_publishing_is_too_late(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    job_store.start(job_id, "w")
    job_store.cancel(job_id)
    assert job_store.succeed(job_id, "tiny@x") is JobStatus.SUCCEEDED


def test_a_worker_that_lost_its_job_cannot_write_any_more(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    zombie = job_store.start(job_id, "zombie").attempt
    job_store.record(job_id, transitions.removed(removals(2)), zombie)
    successor = job_store.start(job_id, "successor")
    assert (successor.attempt, successor.num_lost) == (2, 1)
    assert successor.removed_blocks == (10, 11)
    writes: tuple[Callable[[], object], ...] = (
        lambda: job_store.record(job_id, transitions.phase_begun(Phase.SEARCH), zombie),
        lambda: job_store.record(job_id, transitions.evaluated(1, 2), zombie),
        lambda: job_store.record(job_id, transitions.removed(removals(1)), zombie),
        lambda: job_store.record(job_id, transitions.repairing(1, 2), zombie),
        lambda: job_store.succeed(job_id, "tiny@zombie", zombie),
        lambda: job_store.fail(job_id, ERROR, zombie),
        lambda: job_store.stopped(job_id, zombie),
    )
    before = job_store.get(job_id)
    for write in writes:
        with pytest.raises(StaleAttempt):
            write()
    assert job_store.get(job_id) == before


@pytest.mark.parametrize(("is_lost", "num_lost"), [(True, 1), (False, 0)])
def test_a_job_goes_back_to_the_queue(job_store: JobStore, is_lost: bool, num_lost: int) -> None:
    job_id = job_store.create(SPEC).id
    job_store.start(job_id, "w")
    job_store.record(job_id, transitions.removed(removals(1)))
    assert job_store.requeue(job_id, "worker stopped", is_lost=is_lost) is JobStatus.QUEUED
    job = job_store.get(job_id)
    assert (job.num_lost, job.worker, job.removed_blocks) == (num_lost, None, (10,))
    assert job_store.start(job_id, "w2").attempt == 2


def test_a_job_whose_worker_died_while_it_was_being_cancelled(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    job_store.start(job_id, "w")
    job_store.cancel(job_id)
    assert job_store.requeue(job_id, "worker died", is_lost=True) is JobStatus.CANCELLED


def test_of_many_workers_at_once_one_can_write(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda n: job_store.start(job_id, f"w{n}"), range(8)))
    attempts = sorted(job.attempt for job in jobs)
    assert attempts == list(range(1, 9))
    for attempt in attempts[:-1]:
        with pytest.raises(StaleAttempt):
            job_store.succeed(job_id, "tiny@x", attempt)
    job_store.succeed(job_id, "tiny@x", attempts[-1])


# ---- every sequence of changes


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(sorted(CHANGES)), max_size=12))
def test_whatever_happens_the_state_machine_holds(
    job_store: JobStore, redis_client: redis.Redis, names: list[str]
) -> None:
    redis_client.flushdb()
    job_id = job_store.create(SPEC).id
    for name in names:
        before, num_events = job_store.get(job_id), len(job_store.events(job_id))
        try:
            CHANGES[name](job_store, job_id)
        except IllegalTransition:
            assert job_store.get(job_id) == before
            assert len(job_store.events(job_id)) == num_events
            continue
        after = job_store.get(job_id)
        check_move(before, after)
        is_told = len(job_store.events(job_id)) == num_events + 1
        assert is_told or (name == "pause" and after == before)
        assert job_store.ids(after.status) == (job_id,)
        assert sum(job_store.counts().values()) == 1


def check_move(before: Job, after: Job) -> None:
    moved = after.status is not before.status
    assert not moved or after.status in TRANSITIONS[before.status]
    assert moved == (after.status_since != before.status_since)
    assert (after.finished_at is not None) == after.status.is_final
    has_worker = after.status in {JobStatus.RUNNING, JobStatus.CANCELLING}
    assert has_worker <= (after.worker is not None)
    assert not (after.status in {JobStatus.QUEUED, JobStatus.PAUSED} and after.worker)
    assert after.pause_requested_at is None or after.status is JobStatus.RUNNING
    if before.stop_request is StopRequest.PAUSE:  # a worker that goes then is not counted as lost
        assert after.num_lost in {0, before.num_lost}
        assert after.status is not JobStatus.QUEUED


def test_a_change_cannot_be_written_that_the_table_does_not_have() -> None:
    with pytest.raises(ValueError, match="not in TRANSITIONS"):
        Change("revive", {JobStatus.FAILED: JobStatus.RUNNING})
