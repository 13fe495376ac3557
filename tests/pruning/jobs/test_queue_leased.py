"""The order in which workers take jobs, and what is left when one dies meanwhile."""

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rq.exceptions import DequeueTimeout

from pruning.jobs.queue import LeasedQueue, PruneQueue
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec

SPEC = PruneSpec(model="tiny", num_remove=1)


@pytest.fixture
def queue(redis_client: redis.Redis) -> PruneQueue:
    return PruneQueue(redis_client)


def taken(queue: PruneQueue, timeout: int | None = None) -> str | None:
    """The job that a worker which comes now gets."""
    found = LeasedQueue.lmove(queue.rq.connection, queue.rq.key, timeout)
    return None if found is None else found[1].decode()


def all_taken(queue: PruneQueue) -> list[str]:
    order = []
    while (job_id := taken(queue)) is not None:
        order.append(job_id)
    return order


def test_the_highest_priority_goes_first_and_equal_ones_as_they_came(
    queue: PruneQueue, job_store: JobStore
) -> None:
    low, first, second, high = (
        job_store.create(SPEC, priority=priority).id for priority in (-5, 0, 0, 7)
    )
    for job_id in (second, low, first, high):
        queue.enqueue(job_id)
    assert all_taken(queue) == [high, first, second, low]


def test_what_was_begun_goes_in_front_of_its_equals(queue: PruneQueue, job_store: JobStore) -> None:
    waiting, paused, lost, high = (
        job_store.create(SPEC, priority=priority).id for priority in (0, 0, 0, 1)
    )
    job_store.pause(paused)
    job_store.resume(paused)
    job_store.start(lost, "w")
    job_store.requeue(lost, "its worker died", is_lost=True)
    for job_id in (waiting, paused, lost, high):
        queue.enqueue(job_id)
    assert all_taken(queue) == [high, paused, lost, waiting]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs=st.lists(st.tuples(st.integers(-2, 2), st.booleans()), max_size=6), order=st.randoms())
def test_in_whatever_order_they_are_delivered_jobs_are_taken_in_theirs(
    queue: PruneQueue,
    job_store: JobStore,
    redis_client: redis.Redis,
    jobs: list[tuple[int, bool]],
    order: random.Random,
) -> None:
    redis_client.flushdb()
    ids = []
    for priority, is_resumed in jobs:
        ids.append(job_store.create(SPEC, priority=priority).id)
        if is_resumed:
            job_store.pause(ids[-1])
            job_store.resume(ids[-1])
    for job_id in order.sample(ids, len(ids)):
        queue.enqueue(job_id)
    expected = sorted(zip(jobs, ids, strict=True), key=lambda job: (-job[0][0], not job[0][1]))
    assert all_taken(queue) == [job_id for _, job_id in expected]


def test_a_job_that_is_taken_lies_where_it_is_found_if_its_worker_dies(
    queue: PruneQueue, job_store: JobStore
) -> None:
    first, best = (job_store.create(SPEC, priority=priority).id for priority in (0, 1))
    for job_id in (first, best):
        queue.enqueue(job_id)
    assert taken(queue, timeout=5) == best
    assert queue.rq.get_job_ids() == [first]
    assert queue.rq.intermediate_queue.get_job_ids() == [best]


def test_of_an_empty_queue_a_worker_takes_nothing_or_waits(queue: PruneQueue) -> None:
    assert taken(queue) is None
    began_s = time.monotonic()
    with pytest.raises(DequeueTimeout):
        taken(queue, timeout=1)
    assert time.monotonic() - began_s >= 0.9


def test_a_job_that_another_worker_was_faster_to_take_is_not_taken_twice(
    queue: PruneQueue, job_store: JobStore
) -> None:
    ids = [job_store.create(SPEC).id for _ in range(5)]
    waiting = threading.Barrier(4)

    def work(_worker: int) -> list[str]:
        got: list[str] = []
        waiting.wait()
        try:
            while (job_id := taken(queue, timeout=1)) is not None:
                got.append(job_id)
        except DequeueTimeout:
            return got
        return got

    with ThreadPoolExecutor(4) as workers:
        results = workers.map(work, range(4))
        for job_id in ids:
            queue.enqueue(job_id)
        got = [job_id for result in results for job_id in result]
    rest = all_taken(queue)  # one that came second has given up here, and would look again in RQ
    assert sorted([*got, *rest]) == ids


def test_a_worker_of_rq_takes_what_is_best(
    queue: PruneQueue, job_store: JobStore, redis_client: redis.Redis
) -> None:
    low, high = (job_store.create(SPEC, priority=priority).id for priority in (0, 1))
    for job_id in (low, high):
        queue.enqueue(job_id)
    found = LeasedQueue.dequeue_any(
        [queue.rq], 1, connection=redis_client, serializer=queue.rq.serializer
    )
    assert found is not None
    assert found[0].id == high
