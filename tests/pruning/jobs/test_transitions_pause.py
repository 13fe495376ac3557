"""Jobs that are paused, resumed, or short of memory: what a real server makes of it."""

from collections.abc import Callable

import pytest

from pruning.jobs import transitions
from pruning.jobs.job import IllegalTransition, JobStatus, StopRequest
from pruning.jobs.store import JobStore
from tests.support.job_lives import ERROR, SPEC, messages, removals


def test_a_waiting_job_is_paused_at_once(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    assert job_store.pause(job_id).status is JobStatus.PAUSED
    with pytest.raises(IllegalTransition, match="is paused"):
        job_store.start(job_id, "w")
    assert job_store.resume(job_id).status is JobStatus.QUEUED
    assert job_store.start(job_id, "w").attempt == 1
    assert messages(job_store, job_id)[1:] == ["paused", "resumed", "started by w"]


def test_a_running_job_is_asked_to_pause_and_loses_nothing(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    attempt = job_store.start(job_id, "w").attempt
    job_store.record(job_id, transitions.removed(removals(2)), attempt)
    asked = job_store.pause(job_id)
    assert (asked.status, asked.worker) == (JobStatus.RUNNING, "w")
    assert asked.pause_requested_at is not None
    assert job_store.record(job_id, transitions.evaluated(1, 9), attempt) is StopRequest.PAUSE
    assert job_store.stopped(job_id, attempt) is JobStatus.PAUSED
    paused = job_store.get(job_id)
    assert (paused.worker, paused.phase, paused.pause_requested_at) == (None, None, None)
    assert (paused.removed_blocks, paused.num_lost) == ((10, 11), 0)
    job_store.resume(job_id)
    again = job_store.start(job_id, "w2")
    assert (again.attempt, again.num_lost, again.stop_request) == (2, 0, None)
    assert [event.data["status"] for event in job_store.events(job_id)][-5:] == [
        "running",  # asked
        "running",
        "paused",
        "queued",
        "running",
    ]


@pytest.mark.parametrize("is_running", [True, False])
def test_once_more_changes_nothing(job_store: JobStore, is_running: bool) -> None:
    job_id = job_store.create(SPEC).id
    if is_running:
        job_store.start(job_id, "w")
    paused, story = job_store.pause(job_id), job_store.events(job_id)
    assert job_store.pause(job_id) == paused
    assert job_store.events(job_id) == story


def test_a_pause_is_withdrawn_before_the_worker_has_heard_of_it(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    attempt = job_store.start(job_id, "w").attempt
    job_store.pause(job_id)
    assert job_store.resume(job_id).pause_requested_at is None
    assert job_store.record(job_id, transitions.evaluated(1, 9), attempt) is None
    assert messages(job_store, job_id)[-2:] == ["pause withdrawn", "1 of 9 evaluations"]


def test_a_pause_is_withdrawn_while_the_worker_obeys(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    attempt = job_store.start(job_id, "w").attempt
    job_store.pause(job_id)
    assert job_store.record(job_id, transitions.evaluated(1, 9), attempt) is StopRequest.PAUSE
    job_store.resume(job_id)
    assert job_store.stopped(job_id, attempt) is JobStatus.QUEUED
    assert job_store.start(job_id, "w2").num_lost == 0


def test_a_cancel_comes_before_a_pause(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    attempt = job_store.start(job_id, "w").attempt
    job_store.pause(job_id)
    assert job_store.record(job_id, transitions.evaluated(1, 9), attempt) is StopRequest.PAUSE
    cancelling = job_store.cancel(job_id)
    assert (cancelling.status, cancelling.pause_requested_at) == (JobStatus.CANCELLING, None)
    assert job_store.stopped(job_id, attempt) is JobStatus.CANCELLED


def test_a_paused_job_is_cancelled_at_once(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    job_store.pause(job_id)
    assert job_store.cancel(job_id).status is JobStatus.CANCELLED


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_worker_that_goes_while_it_was_to_pause_is_not_missed(
    job_store: JobStore, is_lost: bool
) -> None:
    job_id = job_store.create(SPEC).id
    job_store.start(job_id, "w")
    job_store.pause(job_id)
    with pytest.raises(IllegalTransition):  # its next one has to see to the pause first
        job_store.start(job_id, "another")
    assert job_store.requeue(job_id, "its worker died", is_lost=is_lost) is JobStatus.PAUSED
    assert job_store.get(job_id).num_lost == 0
    assert messages(job_store, job_id)[-1] == "paused: its worker died"


@pytest.mark.parametrize("end", [JobStatus.SUCCEEDED, JobStatus.FAILED])
def test_a_pause_that_comes_too_late_is_forgotten(job_store: JobStore, end: JobStatus) -> None:
    job_id = job_store.create(SPEC).id
    job_store.start(job_id, "w")
    job_store.pause(job_id)
    if end is JobStatus.SUCCEEDED:
        job_store.succeed(job_id, "tiny@x")
    else:
        job_store.fail(job_id, ERROR)
    ended = job_store.get(job_id)
    assert (ended.status, ended.pause_requested_at) == (end, None)


def test_what_makes_no_sense_is_refused(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    resume, pause = job_store.resume, job_store.pause
    refused: list[tuple[JobStatus, Callable[[str], object]]] = []

    def expect_refusal(*changes: Callable[[str], object]) -> None:
        for change in changes:
            with pytest.raises(IllegalTransition, match=r"cannot (pause|resume) job") as caught:
                change(job_id)
            refused.append((caught.value.status, change))

    expect_refusal(resume)
    attempt = job_store.start(job_id, "w").attempt
    expect_refusal(resume)
    job_store.cancel(job_id)
    expect_refusal(pause, resume)
    job_store.stopped(job_id, attempt)
    expect_refusal(pause, resume)
    assert refused == [
        (JobStatus.QUEUED, resume),
        (JobStatus.RUNNING, resume),
        (JobStatus.CANCELLING, pause),
        (JobStatus.CANCELLING, resume),
        (JobStatus.CANCELLED, pause),
        (JobStatus.CANCELLED, resume),
    ]


# ---- out of memory


def test_a_job_that_was_short_of_memory_goes_back_with_a_warning(job_store: JobStore) -> None:
    job_id = job_store.create(SPEC).id
    attempt = job_store.start(job_id, "w").attempt
    assert job_store.short_of_memory(job_id, "2 GiB", attempt) is JobStatus.QUEUED
    job, warning = job_store.get(job_id), job_store.events(job_id)[-1]
    assert (job.num_halvings, job.num_lost, job.worker) == (1, 0, None)
    assert (warning.level, warning.message) == ("warn", "2 GiB")


@pytest.mark.parametrize("request_", StopRequest)
def test_a_job_that_is_short_of_memory_and_was_to_stop_stops(
    job_store: JobStore, request_: StopRequest
) -> None:
    job_id = job_store.create(SPEC).id
    job_store.start(job_id, "w")
    ask = job_store.pause if request_ is StopRequest.PAUSE else job_store.cancel
    ask(job_id)
    status = job_store.short_of_memory(job_id, "2 GiB")
    expected = JobStatus.PAUSED if request_ is StopRequest.PAUSE else JobStatus.CANCELLED
    assert status is expected
