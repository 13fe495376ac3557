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

import redis
from redis.backoff import ExponentialBackoff
from redis.client import Pipeline
from redis.retry import Retry
from rq import Retry as Redelivery
from rq.exceptions import DuplicateJobError
from rq.job import Job as Delivery
from rq.job import JobStatus as DeliveryStatus
from rq.serializers import JSONSerializer

from pruning.jobs.job import IllegalTransition, JobError, JobNotFound, JobStatus
from pruning.jobs.leased_queue import LEASE_S, LeasedQueue
from pruning.jobs.redis import reaching_redis
from pruning.jobs.store import JobStore

TASK = "pruning.worker.task.run_job"
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


def connect(redis_url: str, *, patience_s: int = 60, answer_s: float = 5) -> redis.Redis:
    """A client whose every command waits ``patience_s`` for a Redis that is away, and ``answer_s``
    for one that does not answer.
    """
    return redis.Redis.from_url(
        redis_url,
        socket_connect_timeout=min(2, answer_s),
        socket_timeout=answer_s,
        retry=Retry(ExponentialBackoff(cap=1, base=0.05), patience_s),
    )


class PruneQueue:
    """Deliveries of recorded jobs. Every method may raise ``JobStoreUnavailable``."""

    def __init__(self, client: redis.Redis, *, task: str = TASK, lease_s: int = LEASE_S) -> None:
        self._forget_ended = client.register_script(_FORGET_ENDED)
        self.rq = LeasedQueue("prune", connection=client, serializer=JSONSerializer)
        self.rq.lease_s = lease_s
        self._task = task

    def enqueue(self, job_id: str) -> None:
        """Deliver a recorded job. While a delivery is on its way, another changes nothing."""
        with reaching_redis(), suppress(DuplicateJobError):
            self._forget_ended(keys=[Delivery.key_for(job_id)])
            self.rq.enqueue_call(
                self._task,
                args=(job_id,),
                job_id=job_id,
                unique=True,
                timeout=-1,
                # without a limit of RQ's: the record counts, and not every redelivery
                retry=Redelivery(max=_NO_LIMIT),
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

    def hand_back(
        self, store: JobStore, delivery: Delivery, reason: str, pipeline: Pipeline
    ) -> None:
        """Deliver it again when ``pipeline`` is executed, or never, if it was to stop anyway."""
        if _requeued(store, delivery.id, reason, is_lost=False):
            delivery.retry(self.rq, pipeline)
        else:
            pipeline.delete(delivery.key)


def worker_lost(store: JobStore, delivery: Delivery) -> None:
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
