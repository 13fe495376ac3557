"""The limit of running jobs of a tenant: whom a worker passes over, and whom it takes instead."""

import time
from collections import Counter
from enum import IntEnum

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rq.exceptions import DequeueTimeout

from pruning.jobs.conditions import ANY_TENANT, Conditions
from pruning.jobs.job import JobStatus
from pruning.jobs.keys import RUNNING_LIMITS
from pruning.jobs.queue import LeasedQueue, PruneQueue
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from tests.support.job_waits import wait_for_status
from tests.support.waiting import LIMIT_S, wait_until
from tests.support.worker_fixtures import Workers
from tests.support.worker_process import HOLD

SPEC = PruneSpec(model="tiny", num_remove=1)


@pytest.fixture
def queue(redis_client: redis.Redis) -> PruneQueue:
    return PruneQueue(redis_client)


def submit(queue: PruneQueue, store: JobStore, owner: str | None, priority: int = 0) -> str:
    job_id = store.create(SPEC, conditions=Conditions(owner=owner), priority=priority).id
    queue.enqueue(job_id)
    return job_id


def taken(queue: PruneQueue, timeout: int | None = None) -> str | None:
    """The job that a worker which comes now gets."""
    found = LeasedQueue.lmove(queue.rq.connection, queue.rq.key, timeout)
    return None if found is None else found[1].decode()


class Stage(IntEnum):
    """How far a job is. From ``TAKEN`` to ``ENDED`` a worker is busy with it."""

    WAITING = 0
    TAKEN = 1  # off the queue
    LEASED = 2
    STARTED = 3  # by its record
    ENDED = 4  # by its record, with the lease
    GONE = 5


class Service:
    """Jobs of several tenants, which workers take and bring to their end step by step."""

    def __init__(self, client: redis.Redis, limits: dict[str, int]) -> None:
        self.limits = limits
        self.stages: dict[str, Stage] = {}
        self._client = client
        self._store = JobStore(client)
        self._queue = PruneQueue(client)
        self._queue.set_running_limits(limits)
        self._owners: dict[str, str | None] = {}
        self._ranks: dict[str, tuple[int, bool, str]] = {}
        self._cancelled: set[str] = set()
        self._without_lease: set[str] = set()

    def submit(self, number: int, priority: int) -> None:
        owner = ("a", "a", "b", None)[number % 4]
        job_id = submit(self._queue, self._store, owner, priority)
        self.stages[job_id] = Stage.WAITING
        self._owners[job_id], self._ranks[job_id] = owner, (-priority, True, job_id)

    def take(self, *_unused: int) -> None:
        expected = self._next()
        waiting = [job_id for job_id, stage in self.stages.items() if stage is Stage.WAITING]
        held = {job_id for job_id in waiting if self._is_held(job_id)}
        assert taken(self._queue) == expected
        if expected is not None:
            self.stages[expected] = Stage.TAKEN
        for owner, number in self.num_running().items():
            assert self._limit(owner) == 0 or number <= self._limit(owner)
        for job_id in waiting:
            held_at = self._limit(self._owners[job_id]) if job_id in held else None
            assert self._store.get(job_id).held_at == held_at

    def step(self, number: int, times: int = 1) -> None:
        """Bring one of the jobs that a worker has some stages further."""
        busy = [job_id for job_id, stage in self.stages.items() if 0 < stage < Stage.GONE]
        if busy:
            for _ in range(times):
                self._step(busy[number % len(busy)])

    def _step(self, job_id: str) -> None:
        if self.stages[job_id] is Stage.GONE:
            return
        stage = self.stages[job_id] = Stage(self.stages[job_id] + 1)
        if stage is Stage.LEASED:
            self._client.zadd(self._leases, {f"{job_id}:{'0' * 32}": time.time() + 60})
            self._client.lrem(self._queue.rq.intermediate_queue_key, 1, job_id)
        elif stage is Stage.STARTED:
            self._store.start(job_id, "w")
        elif stage is Stage.ENDED:
            self._store.succeed(job_id, "tiny@x")
            if job_id in self._without_lease:
                self.stages[job_id] = Stage.GONE
        elif stage is Stage.GONE:
            self._client.zrem(self._leases, f"{job_id}:{'0' * 32}")

    def expire(self, number: int, _unused: int) -> None:
        """The lease of a running job expires. Its record still says that it runs."""
        if (job_id := self._running(number)) is not None:
            self._client.zrem(self._leases, f"{job_id}:{'0' * 32}")
            self._without_lease.add(job_id)

    def lose(self, number: int, _unused: int) -> None:
        """The worker of a running job dies, and the job is delivered again."""
        if (job_id := self._running(number)) is None or job_id in self._cancelled:
            return
        self._store.requeue(job_id, "its worker died", is_lost=True)
        self._client.zrem(self._leases, f"{job_id}:{'0' * 32}")
        self._without_lease.discard(job_id)
        self._queue.rq.push_job_id(job_id)
        self.stages[job_id] = Stage.WAITING
        self._ranks[job_id] = (self._ranks[job_id][0], False, job_id)

    def cancel(self, number: int, _unused: int) -> None:
        """Its worker still has it."""
        if (job_id := self._running(number)) is not None:
            self._store.cancel(job_id)
            self._cancelled.add(job_id)

    def num_running(self) -> Counter[str | None]:
        busy = (job_id for job_id, stage in self.stages.items() if 0 < stage < Stage.GONE)
        return Counter(self._owners[job_id] for job_id in busy)

    def _running(self, number: int) -> str | None:
        running = [job_id for job_id, stage in self.stages.items() if stage is Stage.STARTED]
        return running[number % len(running)] if running else None

    @property
    def _leases(self) -> str:
        return str(self._queue.rq.started_job_registry.key)

    def _limit(self, owner: str | None) -> int:
        return 0 if owner is None else self.limits.get(owner, self.limits.get(ANY_TENANT, 0))

    def _is_held(self, job_id: str) -> bool:
        owner = self._owners[job_id]
        return 0 < self._limit(owner) <= self.num_running()[owner]

    def _next(self) -> str | None:
        """The first by rank whose tenant has room."""
        waiting = [job_id for job_id, stage in self.stages.items() if stage is Stage.WAITING]
        free = (job_id for job_id in waiting if not self._is_held(job_id))
        return min(free, key=lambda job_id: self._ranks[job_id], default=None)


NAMES = ("submit", "submit", "take", "take", "step", "step", "lose", "cancel", "expire")
STEPS = st.tuples(st.sampled_from(NAMES), st.integers(0, 11), st.integers(1, 4))


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limits=st.dictionaries(st.sampled_from(["a", "b", ANY_TENANT]), st.integers(0, 2)),
    steps=st.lists(STEPS, min_size=10, max_size=40),
)
def test_a_worker_takes_the_first_job_whose_tenant_has_room(
    redis_client: redis.Redis, limits: dict[str, int], steps: list[tuple[str, int, int]]
) -> None:
    redis_client.flushdb()
    service = Service(redis_client, limits)
    for name, *numbers in steps:
        getattr(service, name)(*numbers)
    service.take()


@pytest.mark.parametrize("limit", [1, 2])
def test_a_job_counts_once_while_a_worker_has_it(redis_client: redis.Redis, limit: int) -> None:
    for times in range(Stage.ENDED):
        redis_client.flushdb()
        service = Service(redis_client, {"a": limit})
        for _ in range(3):
            service.submit(0, 0)
        service.take()
        service.step(0, times)
        service.take()
        service.take()
        assert service.num_running()["a"] == limit


def test_a_job_that_is_being_cancelled_counts_without_a_lease(redis_client: redis.Redis) -> None:
    service = Service(redis_client, {"a": 1})
    for _ in range(2):
        service.submit(0, 0)
    service.take()
    service.step(0, 2)
    service.cancel(0, 0)
    service.expire(0, 0)
    service.take()
    assert service.num_running()["a"] == 1


def test_every_job_of_a_limited_tenant_runs_in_the_end(redis_client: redis.Redis) -> None:
    service = Service(redis_client, {ANY_TENANT: 1})
    for number in (0, 0, 0, 2, 2, 2):
        service.submit(number, 0)
    while any(stage < Stage.GONE for stage in service.stages.values()):
        service.take()
        service.step(0)


def test_new_limits_replace_the_earlier_ones(
    queue: PruneQueue, job_store: JobStore, redis_client: redis.Redis
) -> None:
    queue.set_running_limits({"a": 1, "b": 1})
    first, second = (submit(queue, job_store, "a") for _ in range(2))
    assert [taken(queue), taken(queue)] == [first, None]
    assert job_store.get(second).held_at == 1
    queue.set_running_limits({"b": 1})
    assert taken(queue) == second
    assert job_store.get(second).held_at is None
    queue.set_running_limits({})
    assert not redis_client.exists(RUNNING_LIMITS)


def test_a_job_does_not_wait_for_itself(
    queue: PruneQueue, job_store: JobStore, redis_client: redis.Redis
) -> None:
    """Its last worker has died, and it is delivered again before the lease is removed."""
    queue.set_running_limits({"a": 1})
    job_id = submit(queue, job_store, "a")
    leases = queue.rq.started_job_registry.key
    redis_client.zadd(leases, {f"{job_id}:{'0' * 32}": time.time() + 60})
    assert taken(queue) == job_id


def test_a_worker_looks_again_each_second_while_all_jobs_have_to_wait(
    queue: PruneQueue, job_store: JobStore
) -> None:
    queue.set_running_limits({"a": 1})
    first, second = (submit(queue, job_store, "a") for _ in range(2))
    assert taken(queue, timeout=60) == first
    began_s = time.monotonic()
    with pytest.raises(DequeueTimeout):
        taken(queue, timeout=60)
    assert 0.9 <= time.monotonic() - began_s < 50
    queue.rq.intermediate_queue.remove(first)
    assert taken(queue, timeout=60) == second


@pytest.mark.slow
def test_two_workers_run_one_job_of_a_tenant_at_a_time(
    workers: Workers, redis_client: redis.Redis, job_store: JobStore
) -> None:
    queue = PruneQueue(redis_client, task=HOLD)
    queue.set_running_limits({"a": 1})
    first, second = (submit(queue, job_store, "a") for _ in range(2))
    workers.start()
    workers.start()
    workers.wait_for_children(1)
    other = submit(queue, job_store, "b")
    workers.wait_for_children(2)
    assert job_store.get(other).status is JobStatus.RUNNING
    wait_until(lambda: job_store.get(second).held_at == 1, "the job is passed over")
    assert job_store.get(second).status is JobStatus.QUEUED
    workers.release()
    ended = wait_for_status(job_store, first, JobStatus.SUCCEEDED).finished_at
    began = wait_for_status(job_store, second, JobStatus.SUCCEEDED).started_at
    wait_for_status(job_store, other, JobStatus.SUCCEEDED)
    assert ended is not None
    assert began is not None
    assert 0 <= began - ended < LIMIT_S
