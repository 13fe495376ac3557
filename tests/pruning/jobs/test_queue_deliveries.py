"""Record and delivery of a job together, through any sequence of requests, workers and deaths."""

from collections.abc import Callable
from contextlib import suppress
from itertools import count

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.job import JobStatus as DeliveryStatus
from rq.serializers import JSONSerializer

from pruning.jobs.job import IllegalTransition, JobStatus
from pruning.jobs.queue import Delivery, LeasedQueue, PruneQueue
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec
from pruning.worker.parent import PruneWorker

SPEC = PruneSpec(model="tiny", num_remove=1)
_WITH_WORKER = {JobStatus.RUNNING, JobStatus.CANCELLING}


class Life:
    """One job, one worker that may die at any moment, and clients that ask for anything."""

    def __init__(self, client: redis.Redis) -> None:
        self.store = JobStore(client)
        self.queue = PruneQueue(client)
        self.job_id = self.store.create(SPEC).id
        self._client = client
        self._held: tuple[PruneWorker, RQJob, Execution] | None = None
        self._attempt = 0
        self._numbers = count()

    # ---- what clients do

    def enqueue(self) -> None:
        self.queue.enqueue(self.job_id)

    def pause(self) -> None:
        self.store.pause(self.job_id)

    def resume(self) -> None:
        if self.store.resume(self.job_id).status is JobStatus.QUEUED:
            self.enqueue()

    def resume_and_crash(self) -> None:
        self.store.resume(self.job_id)

    def cancel(self) -> None:
        self.store.cancel(self.job_id)

    # ---- what its worker does

    def take(self) -> None:
        if self._held or LeasedQueue.lmove(self._client, self.queue.rq.key, None) is None:
            return
        worker = PruneWorker(f"worker-{next(self._numbers)}", self._client, lease_s=15)
        worker.register_birth()  # type: ignore[no-untyped-call]  # so it is in RQ
        delivery = Delivery.fetch(self.job_id, self._client, JSONSerializer)
        execution = worker.prepare_execution(delivery)
        delivery.set_status(DeliveryStatus.STARTED)
        self.queue.rq.intermediate_queue.remove(self.job_id)
        self._held = (worker, delivery, execution)
        try:
            self._attempt = self.store.start(self.job_id, worker.name).attempt
        except IllegalTransition as refused:
            if refused.status in _WITH_WORKER:
                self.store.stopped(self.job_id)
            self._finish()

    def obey(self) -> None:
        if self._held and self.store.get(self.job_id).stop_request is not None:
            self.store.stopped(self.job_id, self._attempt)
            self._finish()

    def run_out_of_memory(self) -> None:
        if self._held:
            self.store.short_of_memory(self.job_id, "no", self._attempt)
            self._finish()

    def succeed(self) -> None:
        if self._held:
            self.store.succeed(self.job_id, "tiny@x", self._attempt)
            self._finish()

    def die(self) -> None:
        self._end_child()

    def stop(self) -> None:
        self._end_child(is_stopping=True)

    def die_with_its_parent(self) -> None:
        """Its lease runs out, and another worker looks for such."""
        if self._held:
            _worker, delivery, execution = self._held
            self._held = None
            self._client.zadd(delivery.started_job_registry.key, {execution.composite_key: 1})
            other = PruneWorker("other", self._client, lease_s=15)
            other.queues[0].started_job_registry.cleanup(exception_handlers=other._exc_handlers)

    def recover(self) -> None:
        self.queue.recover(self.store)

    def _finish(self) -> None:
        assert self._held
        worker, delivery, execution = self._held
        self._held = None
        with self._client.pipeline() as pipeline:
            delivery.set_status(DeliveryStatus.FINISHED, pipeline)
            delivery.cleanup(60, pipeline=pipeline, remove_from_queue=False)
            worker.cleanup_execution(delivery, pipeline, execution)
            pipeline.execute()
        worker._enqueue_again(self.job_id)

    def _end_child(self, *, is_stopping: bool = False) -> None:
        if self._held:
            worker, delivery, execution = self._held
            self._held = None
            worker.is_stopping = is_stopping
            worker.handle_job_failure(delivery, worker.queues[0], execution=execution)
            worker._enqueue_again(self.job_id)

    # ---- what has to hold

    def check(self) -> None:
        """A waiting job is delivered once, and a running job belongs to the worker that has it."""
        status = self.store.get(self.job_id).status
        waiting = self.queue.rq.get_job_ids()
        leased = self.queue.rq.started_job_registry.get_job_ids(cleanup=False)
        if status is JobStatus.QUEUED:
            assert (waiting, leased) == ([self.job_id], [])
        elif status in _WITH_WORKER:
            assert leased == [self.job_id]
        else:
            assert leased == []


ACTIONS: tuple[Callable[[Life], None], ...] = (
    Life.enqueue,
    Life.pause,
    Life.resume,
    Life.resume_and_crash,
    Life.cancel,
    Life.take,
    Life.obey,
    Life.run_out_of_memory,
    Life.succeed,
    Life.die,
    Life.stop,
    Life.die_with_its_parent,
    Life.recover,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(st.sampled_from(ACTIONS), max_size=14))
def test_no_job_is_lost_or_delivered_twice(
    redis_client: redis.Redis, actions: list[Callable[[Life], None]]
) -> None:
    redis_client.flushdb()
    life = Life(redis_client)
    for action in actions:
        with suppress(IllegalTransition):
            action(life)
    life.recover()
    life.check()
    if life.store.get(life.job_id).status is JobStatus.PAUSED:
        life.resume()
        life.check()


@pytest.mark.parametrize("end", [Life.obey, Life.die, Life.stop, Life.die_with_its_parent])
def test_a_pause_is_obeyed_however_its_worker_ends(
    redis_client: redis.Redis, end: Callable[[Life], None]
) -> None:
    life = Life(redis_client)
    life.enqueue()
    life.take()
    life.pause()
    end(life)
    life.recover()
    job = life.store.get(life.job_id)
    assert (job.status, job.num_lost) == (JobStatus.PAUSED, 0)
    life.check()
    life.resume()
    life.take()
    assert life.store.get(life.job_id).attempt == 2
