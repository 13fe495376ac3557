"""RQ binding: how a recorded job reaches a worker, and what becomes of it when a worker is lost.

Delivery is at least once: whatever dies, the job is delivered again, ``DELIVERIES`` times at
most. The task is named by a string, so nobody here waits for torch. JSON only: with RQ's pickle
whoever can write to Redis could run code.

RQ's own keys, all below ``rq:``, stay few: its queue and worker lists are permanent, what it
keeps of one job goes within ``KEPT_S`` after the job.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.retry import Retry
from rq import Queue
from rq import Retry as Redelivery
from rq.exceptions import DuplicateJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job as Delivery
from rq.job import JobStatus as DeliveryStatus
from rq.serializers import JSONSerializer
from rq.utils import now

from pruning.job import IllegalTransition, JobError, JobStatus
from pruning.jobs import JobNotFound, JobStore, reaching_redis

TASK = "pruning.worker.run_job"
DELIVERIES = 3
LEASE_S = 15
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

_UNFINISHED = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELLING)
_NO_LIMIT = 1000

logger = logging.getLogger(__name__)


def connect(redis_url: str, *, patience_s: int = 60) -> redis.Redis:
    """A client whose every command waits this long for a Redis that is away."""
    return redis.Redis.from_url(
        redis_url,
        socket_connect_timeout=2,
        socket_timeout=5,
        retry=Retry(ExponentialBackoff(cap=1, base=0.05), patience_s),
    )


class PruneQueue:
    """Deliveries of recorded jobs. Every method may raise ``JobStoreUnavailable``."""

    def __init__(self, client: redis.Redis, *, task: str = TASK, lease_s: int = LEASE_S) -> None:
        self.rq = LeasedQueue("prune", connection=client, serializer=JSONSerializer)
        self.rq.lease_s = lease_s
        self._task = task

    def enqueue(self, job_id: str) -> None:
        """Deliver a recorded job. While a delivery is on its way, another changes nothing."""
        with reaching_redis(), suppress(DuplicateJobError):
            self.rq.enqueue_call(
                self._task,
                args=(job_id,),
                job_id=job_id,
                unique=True,
                timeout=-1,
                # without a limit of RQ's: the record counts, and not every redelivery
                retry=Redelivery(max=_NO_LIMIT, enqueue_at_front=True),
                result_ttl=KEPT_S,
                failure_ttl=KEPT_S,
            )

    def recover(self, store: JobStore) -> None:
        """Deliver the jobs that nobody has and that are not on their way to anybody."""
        with reaching_redis():
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
            with reaching_redis():
                self.rq.connection.delete(Delivery.key_for(job_id))
            self.enqueue(job_id)

    def hand_back(self, store: JobStore, delivery: Delivery, pipeline: Pipeline) -> None:
        """Deliver it again when ``pipeline`` is executed."""
        with _unless_ended(delivery.id):
            store.requeue(delivery.id, "handed back by a worker that stops", is_lost=False)
        delivery.retry(self.rq, pipeline)


def worker_lost(store: JobStore, delivery: Delivery) -> None:
    """Record that the worker of this delivery died, and tell RQ whether to deliver again."""
    with _unless_ended(delivery.id):
        status = store.requeue(delivery.id, "its worker died", is_lost=True)
        if status is JobStatus.QUEUED:
            if store.get(delivery.id).num_lost < DELIVERIES:
                return
            give_up(store, delivery.id)
    delivery.retries_left = 0


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
    """RQ's queue, except that no death of its caretaker stalls it for longer than a lease."""

    lease_s = LEASE_S

    def acquire_maintenance_lock(self) -> bool:
        return bool(self.connection.set(self.registry_cleaning_key, 1, nx=True, ex=self.lease_s))

    @property
    def intermediate_queue(self) -> IntermediateQueue:
        taken = _TakenQueue(self.key, connection=self.connection)
        taken.lease_s = self.lease_s
        return taken
