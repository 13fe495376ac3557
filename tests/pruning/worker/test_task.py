"""The task of a delivery, run in this process: what ends how, and what is written down."""

from collections.abc import Callable

import pytest

from pruning.jobs.job import IllegalTransition, Job, JobStatus, Phase
from pruning.jobs.queue import DELIVERIES
from pruning.jobs.script import StaleAttempt
from pruning.jobs.store import JobStore
from pruning.search.state import ScoredCandidate, SearchPlan, SearchState
from pruning.spec.prune import PruneSpec
from pruning.worker.task import JobObserver, execute
from tests.support.job_lives import FIRST, SECOND

SPEC = PruneSpec(model="tiny", num_remove=1)
Run = Callable[[Job, JobObserver], str]


@pytest.fixture
def job_id(job_store: JobStore) -> str:
    return job_store.create(SPEC).id


def never(_job: Job, _observer: JobObserver) -> str:
    raise AssertionError("this job must not run")


def test_a_run_is_written_down(job_store: JobStore, job_id: str) -> None:
    def run(job: Job, observer: JobObserver) -> str:
        assert (job.id, job.spec, job.attempt) == (job_id, SPEC, 1)
        observer.phase("search")
        observer.evaluated(1, 2)
        observer.evaluated(2, 2)
        observer.removed(FIRST)
        observer.phase("publish")
        return "tiny@x"

    execute(job_id, job_store, "a worker", run)
    job = job_store.get(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert (job.pruned_model, job.worker) == ("tiny@x", "a worker")
    assert (job.phase, job.removed_blocks, job.losses) == (Phase.PUBLISH, (3,), (2.5,))
    assert (job.progress.evaluations_done, job.progress.evaluations_total) == (2, 2)


def test_cancel_stops_the_run_at_its_next_word(job_store: JobStore, job_id: str) -> None:
    def run(_job: Job, observer: JobObserver) -> str:
        observer.removed(FIRST)
        job_store.cancel(job_id)
        observer.evaluated(1, 2)
        raise AssertionError("not stopped")

    execute(job_id, job_store, "worker", run)
    job = job_store.get(job_id)
    assert (job.status, job.removed_blocks) == (JobStatus.CANCELLED, (3,))


def test_cancel_that_comes_too_late_leaves_a_published_model(
    job_store: JobStore, job_id: str
) -> None:
    def run(_job: Job, _observer: JobObserver) -> str:
        job_store.cancel(job_id)
        return "tiny@x"

    execute(job_id, job_store, "worker", run)
    assert job_store.get(job_id).status is JobStatus.SUCCEEDED


def test_a_job_that_was_to_be_cancelled_when_its_worker_died_does_not_run(
    job_store: JobStore, job_id: str
) -> None:
    job_store.start(job_id, "a dead worker")
    job_store.cancel(job_id)
    execute(job_id, job_store, "worker", never)
    assert job_store.get(job_id).status is JobStatus.CANCELLED


def test_pause_stops_the_run_at_its_next_word_and_the_next_goes_on(
    job_store: JobStore, job_id: str
) -> None:
    def run(job: Job, observer: JobObserver) -> str:
        assert len(observer.earlier.removals) == job.attempt - 1
        observer.removed([FIRST, SECOND][job.attempt - 1])
        job_store.pause(job_id)
        observer.evaluated(1, 2)
        raise AssertionError("not stopped")

    execute(job_id, job_store, "worker", run)
    execute(job_id, job_store, "worker", never)
    assert job_store.get(job_id).status is JobStatus.PAUSED
    job_store.resume(job_id)
    execute(job_id, job_store, "worker", run)
    job = job_store.get(job_id)
    assert (job.status, job.attempt, job.num_lost) == (JobStatus.PAUSED, 2, 0)


def test_a_job_that_was_to_pause_when_its_worker_died_does_not_run(
    job_store: JobStore, job_id: str
) -> None:
    job_store.start(job_id, "a dead worker")
    job_store.pause(job_id)
    execute(job_id, job_store, "worker", never)
    assert job_store.get(job_id).status is JobStatus.PAUSED


def test_a_second_delivery_of_an_ended_job_does_nothing(job_store: JobStore, job_id: str) -> None:
    execute(job_id, job_store, "worker", lambda _job, _observer: "tiny@x")
    before = job_store.get(job_id)
    execute(job_id, job_store, "worker", never)
    execute("prn-00000000000000000dead", job_store, "worker", never)
    assert job_store.get(job_id) == before


def test_a_job_that_has_cost_enough_workers_does_not_run(job_store: JobStore, job_id: str) -> None:
    for _ in range(DELIVERIES):
        job_store.requeue(job_id, "its worker died", is_lost=True)
    execute(job_id, job_store, "worker", never)
    error = job_store.get(job_id).error
    assert error is not None
    assert error.code == "worker_lost"


def take_over(store: JobStore, job_id: str) -> None:
    store.start(job_id, "the next worker")


def hand_back(store: JobStore, job_id: str) -> None:
    store.requeue(job_id, "its lease ran out", is_lost=True)


@pytest.mark.parametrize("lose", [take_over, hand_back])
@pytest.mark.parametrize("is_in_progress", [True, False])
def test_a_worker_that_lost_its_job_writes_nothing(
    job_store: JobStore,
    job_id: str,
    lose: Callable[[JobStore, str], None],
    is_in_progress: bool,
) -> None:
    def run(_job: Job, observer: JobObserver) -> str:
        lose(job_store, job_id)
        if is_in_progress:
            observer.evaluated(1, 2)
            raise AssertionError("not stopped")
        return "tiny@x"

    with pytest.raises((StaleAttempt, IllegalTransition)):
        execute(job_id, job_store, "worker", run)
    job = job_store.get(job_id)
    assert (job.pruned_model, job.progress.evaluations_done) == (None, 0)
    assert not job.status.is_final


def test_a_worker_goes_on_with_what_the_one_before_has_found(
    job_store: JobStore, job_id: str
) -> None:
    plan = SearchPlan("d1g", 2)

    def lost(_job: Job, observer: JobObserver) -> str:
        assert observer.earlier == SearchState()
        observer.searching(plan, 0, 2)
        observer.evaluated(1, 2, [ScoredCandidate("1", 3, [2.5])])
        observer.removed(FIRST)
        job_store.requeue(job_id, "its worker died", is_lost=True)
        return "tiny@lost"

    def resumed(_job: Job, observer: JobObserver) -> str:
        assert observer.earlier == SearchState(plan, (FIRST,))
        observer.searching(plan, 1, 2)
        observer.removed(SECOND)
        return "tiny@x"

    with pytest.raises((StaleAttempt, IllegalTransition)):
        execute(job_id, job_store, "first", lost)
    execute(job_id, job_store, "second", resumed)
    job = job_store.get(job_id)
    assert (job.status, job.removed_blocks) == (JobStatus.SUCCEEDED, (3, 4))
