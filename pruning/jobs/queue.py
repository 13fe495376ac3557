"""RQ binding: how a recorded job reaches a worker, and what becomes of it when a worker is lost.

Delivery is at least once: whatever dies, the job is delivered again, ``DELIVERIES`` times at
most. The task is named by a string, so nobody here waits for torch. JSON only: with RQ's pickle
whoever can write to Redis could run code.

RQ's own keys, all below ``rq:``, stay few: its queue and worker lists are permanent, what it
keeps of one job goes within ``KEPT_S`` after the job.

RQ's queue, made for jobs of hours: in the order of their priorities, and soon free again.

RQ delivers in the order of its list. Here a worker takes the best of the list instead, in one
atomic step, by what the records say: so no crash on the way can put it into the wrong order.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import MappingProxyType
from typing import Any, ClassVar

import redis
from redis.client import Pipeline
from rq import Queue, Retry
from rq.exceptions import DequeueTimeout, DeserializationError, DuplicateJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job as RQJob
from rq.job import JobStatus as DeliveryStatus
from rq.serializers import JSONSerializer
from rq.utils import now

from pruning.jobs.job import JOB_ID, IllegalTransition, JobError, JobNotFound, JobStatus
from pruning.jobs.keys import RECORD
from pruning.jobs.redis import redis_errors_translated
from pruning.jobs.store import JobStore

LEASE_S = 15

Task = Callable[[str], None]


class DeliveryRefused(Exception):
    """A delivery names something other than a known task and the id of its own job."""


class Delivery(RQJob):
    """One delivery of a recorded job. It runs a function of ``tasks``, given the id of the job.

    RQ imports the function and the callbacks that Redis names, and posts to the webhooks, so
    whoever can write to Redis could run any code of this machine. Here names are only looked up.
    """

    tasks: ClassVar[Mapping[str, Task]] = MappingProxyType({})  # by name; for the worker to set

    @property
    def func(self) -> Task:
        """The task to run. Raises ``DeliveryRefused``."""
        try:
            name, args, kwargs = self.func_name, self.args, self.kwargs
        except DeserializationError as error:
            raise DeliveryRefused("its data is not that of a delivery") from error
        task = self.tasks.get(name) if isinstance(name, str) else None
        if task is None:
            raise DeliveryRefused(f"there is no task named {str(name)[:100]!r}")
        if args != [self.id] or kwargs or not JOB_ID.fullmatch(self.id):
            raise DeliveryRefused("its only argument must be the id of its job")
        return task

    def restore(self, raw_data: Any) -> None:  # noqa: ANN401 - the signature is RQ's
        super().restore(raw_data)
        self._success_callback_name = None
        self._failure_callback_name = None
        self._stopped_callback_name = None
        self.webhooks = []


# KEYS the queue, and where a job lies until it is leased. ARGV what a record's key begins with.
# The best has the highest priority, then was worked on before, then is the oldest: ids tell that.
_TAKE = """
local best, best_priority, best_is_behind
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  local found = redis.call('HMGET', ARGV[1] .. id, 'priority', 'in_front')
  local priority, is_behind = tonumber(found[1] or 0) or 0, (found[2] or '') == '' and 1 or 0
  local is_better = not best or priority > best_priority
  if best and priority == best_priority then
    is_better = is_behind < best_is_behind or (is_behind == best_is_behind and id < best)
  end
  if is_better then best, best_priority, best_is_behind = id, priority, is_behind end
end
if best then
  redis.call('LREM', KEYS[1], 1, best)
  redis.call('RPUSH', KEYS[2], best)
end
return best
"""


class _TakenQueue(IntermediateQueue):
    """Jobs that were taken off the queue but are not leased yet: for milliseconds, as a rule."""

    lease_s = LEASE_S

    def should_be_cleaned_up(self, job_id: str) -> bool:
        first_seen = self.get_first_seen(job_id)
        return first_seen is not None and now() - first_seen > timedelta(seconds=self.lease_s)

    def remove(self, job_id: str) -> None:
        super().remove(job_id)
        self.connection.delete(self.get_first_seen_key(job_id))


class LeasedQueue(Queue):
    """No death of its caretaker stalls it for longer than a lease."""

    lease_s = LEASE_S

    @classmethod
    def lmove(cls, connection: redis.Redis, queue_key: str, timeout: int | None) -> Any:  # noqa: ANN401 - as in RQ
        """The queue's key and the id of its best job, taken; None if it is empty.

        With a ``timeout`` in seconds it waits for one, and raises ``DequeueTimeout``.
        """
        # from an end of the list to the same end moves nothing, but waits
        if timeout is not None and not connection.blmove(
            queue_key, queue_key, timeout, "LEFT", "LEFT"
        ):
            raise DequeueTimeout(timeout, queue_key)
        keys = [queue_key, IntermediateQueue.get_intermediate_queue_key(queue_key)]
        taken = connection.register_script(_TAKE)(keys=keys, args=[RECORD.format(id="")])
        if taken is None and timeout is not None:  # another worker was faster
            raise DequeueTimeout(timeout, queue_key)
        return None if taken is None else (queue_key, taken)

    def acquire_maintenance_lock(self) -> bool:
        return bool(self.connection.set(self.registry_cleaning_key, 1, nx=True, ex=self.lease_s))

    @property
    def intermediate_queue(self) -> IntermediateQueue:
        taken = _TakenQueue(self.key, connection=self.connection)
        taken.lease_s = self.lease_s
        return taken


TASK = "pruning.worker.run_job"  # only a name: what it was when RQ imported the function by it
DELIVERIES = 3
KEPT_S = 3600
PERMANENT_KEYS = (
    "rq:queues",
    "rq:queue:prune*",
    "rq:workers*",
    "rq:wip:prune",
    "rq:finished:prune",
    "rq:failed:prune",
    "rq:job:*",  # while it is delivered
)

# KEYS a delivery. One that is over must not be taken for one that is on its way.
_FORGET_ENDED = """
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'finished' or status == 'failed' then redis.call('DEL', KEYS[1]) end
"""
_UNFINISHED = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELLING)
_NO_LIMIT = 1000

logger = logging.getLogger(__name__)


class PruneQueue:
    """Deliveries of recorded jobs. Every method may raise ``JobStoreUnavailable``."""

    def __init__(self, client: redis.Redis, *, task: str = TASK, lease_s: int = LEASE_S) -> None:
        self._forget_ended = client.register_script(_FORGET_ENDED)
        self.rq = LeasedQueue(
            "prune", connection=client, job_class=Delivery, serializer=JSONSerializer
        )
        self.rq.lease_s = lease_s
        self._task = task

    def enqueue(self, job_id: str) -> None:
        """Deliver a recorded job. While a delivery is on its way, another changes nothing."""
        with redis_errors_translated(), suppress(DuplicateJobError):
            self._forget_ended(keys=[Delivery.key_for(job_id)])
            self.rq.enqueue_call(
                self._task,
                args=(job_id,),
                job_id=job_id,
                unique=True,
                timeout=-1,
                # without a limit of RQ's: the record counts, and not every redelivery
                retry=Retry(max=_NO_LIMIT),
                result_ttl=KEPT_S,
                failure_ttl=KEPT_S,
            )

    def enqueue_again(self, store: JobStore, job_id: str) -> None:
        """Deliver a job that went back to the queue before its last delivery had ended."""
        with _unless_ended(job_id):
            if store.get(job_id).status is JobStatus.QUEUED:
                self.enqueue(job_id)

    def recover(self, store: JobStore) -> None:
        """Deliver the jobs that nobody has and that are not on their way to anybody."""
        with redis_errors_translated():
            job_ids = [job_id for status in _UNFINISHED for job_id in store.ids(status)]
            deliveries = Delivery.fetch_many(job_ids, self.rq.connection, JSONSerializer)
            # asked after the deliveries: what was started in between has its lease by now
            leased = set(self.rq.started_job_registry.get_job_ids(cleanup=False))
        for job_id, delivery in zip(job_ids, deliveries, strict=True):
            is_waiting = delivery and delivery.get_status(refresh=False) == DeliveryStatus.QUEUED
            if not is_waiting and job_id not in leased:
                with _unless_ended(job_id):
                    self._redeliver(store, job_id)

    def _redeliver(self, store: JobStore, job_id: str) -> None:
        status = store.requeue(job_id, "delivered again: the queue had lost it", is_lost=False)
        if status is JobStatus.QUEUED:
            with redis_errors_translated():
                self.rq.connection.delete(Delivery.key_for(job_id))
            self.enqueue(job_id)

    def hand_back(self, store: JobStore, delivery: RQJob, reason: str, pipeline: Pipeline) -> None:
        """Deliver it again when ``pipeline`` is executed, or never, if it was to stop anyway."""
        if _requeued(store, delivery.id, reason, is_lost=False):
            delivery.retry(self.rq, pipeline)
        else:
            pipeline.delete(delivery.key)


def worker_lost(store: JobStore, delivery: RQJob) -> None:
    """Record that the worker of this delivery died, and tell RQ whether to deliver again."""
    if _requeued(store, delivery.id, "its worker died", is_lost=True):
        with _unless_ended(delivery.id):
            if store.get(delivery.id).num_lost < DELIVERIES:
                return
            give_up(store, delivery.id)
    delivery.retries_left = 0


def _requeued(store: JobStore, job_id: str, reason: str, *, is_lost: bool) -> bool:
    """False if nobody is to go on with it."""
    status = None
    with _unless_ended(job_id):
        status = store.requeue(job_id, reason, is_lost=is_lost)
    return status is JobStatus.QUEUED


def give_up(store: JobStore, job_id: str) -> None:
    message = (
        f"{DELIVERIES} workers died with this job at the same point: the log of the last says why"
    )
    store.fail(job_id, JobError("worker_lost", message))


@contextmanager
def _unless_ended(job_id: str) -> Iterator[None]:
    """A job that has ended, or was deleted, needs nobody any more."""
    try:
        yield
    except (IllegalTransition, JobNotFound) as error:
        logger.info("job %s is left as it is: %s", job_id, error)
