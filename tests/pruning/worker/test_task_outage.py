"""A worker whose Redis is away for a while: the search goes on, and what it finds is not lost."""

import pytest
import redis

from pruning.jobs.job import Job, JobStatus, StopRequest
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.script import Change
from pruning.jobs.store import JobStore
from pruning.removal import Removal
from pruning.search.state import SearchPlan, SearchState
from pruning.spec.prune import PruneSpec
from pruning.worker.task import JobObserver, execute

FIRST = Removal(1, 3, 2.5, 2.0, 4, 0.25, None, {3: 2.5, 4: 2.75}, {3: 1, 4: 1})
SECOND = Removal(2, 4, 3.5, 2.0, None, None, None, {4: 3.5}, {4: 1})


@pytest.fixture
def job_id(job_store: JobStore) -> str:
    return job_store.create(PruneSpec(model="tiny", num_remove=1)).id


class FlakyStore(JobStore):
    """A store whose Redis is away for the next ``failures`` writes of progress."""

    failures = 0

    def record(self, job_id: str, change: Change, attempt: int | None = None) -> StopRequest | None:
        if self.failures:
            self.failures -= 1
            raise JobStoreUnavailable("gone for a moment")
        return super().record(job_id, change, attempt)


def test_a_removal_that_was_missed_is_written_as_soon_as_possible(
    redis_client: redis.Redis, job_id: str
) -> None:
    store = FlakyStore(redis_client)

    def run(_job: Job, observer: JobObserver) -> str:
        store.failures = 1
        observer.removed(FIRST)
        assert store.get(job_id).removed_blocks == ()
        observer.phase("evaluate")
        assert store.get(job_id).removed_blocks == (3,)
        return "tiny@x"

    execute(job_id, store, "worker", run)
    assert store.get(job_id).status is JobStatus.SUCCEEDED


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_a_plan_that_could_not_be_written_comes_before_what_follows_from_it(
    redis_client: redis.Redis, job_id: str, failures: int
) -> None:
    store = FlakyStore(redis_client)

    def run(_job: Job, observer: JobObserver) -> str:
        store.failures = failures
        observer.searching(SearchPlan("d1g", 2), 0, 2)
        observer.removed(FIRST)
        observer.phase("evaluate")
        observer.phase("publish")
        observer.phase("publish")
        assert store.search_state(job_id) == SearchState(SearchPlan("d1g", 2), (FIRST,))
        return "tiny@x"

    execute(job_id, store, "worker", run)


@pytest.mark.parametrize("failures", [1, 2, 3, 4, 5])
def test_a_store_that_is_away_stops_no_search_and_loses_no_removal(
    redis_client: redis.Redis, job_id: str, failures: int
) -> None:
    store = FlakyStore(redis_client)

    def run(_job: Job, observer: JobObserver) -> str:
        observer.evaluated(1, 3)
        store.failures = failures
        observer.removed(FIRST)
        observer.evaluated(2, 3)
        observer.evaluated(3, 3)
        observer.removed(SECOND)
        return "tiny@x"

    execute(job_id, store, "worker", run)
    job = store.get(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert (job.removed_blocks, job.losses) == ((3, 4), (2.5, 3.5))
