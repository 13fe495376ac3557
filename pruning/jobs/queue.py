"""The binding to RQ: how a recorded job reaches a worker, and what happens when a worker is lost.

Delivery is at least once. A job is delivered again when its worker dies, at most ``DELIVERIES``
times. The task is given by its name, so that submitting a job imports no torch, and arguments are
JSON: RQ's default, pickle, would run code from Redis.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import MappingProxyType
from typing import Any, ClassVar

import redis
from redis.client import Pipeline
from rq import Queue, Retry
from rq.exceptions import (
    DequeueTimeout,
    DeserializationError,
    DuplicateJobError,
    NoSuchJobError,
)
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job as RQJob
from rq.job import JobStatus as DeliveryStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.utils import now

from pruning.jobs.conditions import ANY_TENANT
from pruning.jobs.job import JOB_ID, IllegalTransition, JobError, JobNotFound, JobStatus
from pruning.jobs.keys import RECORD, RUNNING_LIMITS, STATUS_INDEX
from pruning.jobs.redis import each_of, redis_errors_translated, wrong_types_as_outages
from pruning.jobs.store import JobStore

TASK = "pruning.worker.run_job"  # only a name: its path in the versions that imported it
DELIVERIES = 3
LEASE_S = 15
RESULT_KEPT_S = 3600

Task = Callable[[str], None]
_UNFINISHED = (JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELLING)
_INDEXES_OF_RUNNING = tuple(
    STATUS_INDEX.format(status=status) for status in (JobStatus.RUNNING, JobStatus.CANCELLING)
)
_LOOK_AGAIN_S = 1.0  # while every waiting job has to wait for another of its tenant
_MAX_RETRIES = 1000  # of RQ's own; the job's record has the limit that counts

# KEYS a delivery. An ended delivery would be taken for a pending one.
_FORGET_ENDED = """
local status = redis.call('HGET', KEYS[1], 'status')
if status == 'finished' or status == 'failed' then redis.call('DEL', KEYS[1]) end
"""

# KEYS the queue, the list of jobs that are taken but not leased, the leases, the limits of running
# jobs by tenant, and the indexes of running and of cancelling jobs. ARGV the prefix of records, and
# the tenant that stands for any other.
# Jobs are ordered by priority, then jobs that were worked on before, then age, which ids tell. One
# whose tenant runs its limit is passed over, and its record says so.
# Returns the best, if any, the number of those passed over, and the entries that it has removed
# because RQ cannot read them.
_TAKE = """
local limits, running, counted = {}, {}, {}
local rows = redis.call('HGETALL', KEYS[4])
for at = 1, #rows, 2 do limits[rows[at]] = tonumber(rows[at + 1]) end
local function count(id)
  local owner = redis.pcall('HGET', ARGV[1] .. id, 'owner')
  owner = type(owner) == 'string' and owner or ''
  if not counted[id] then running[owner] = (running[owner] or 0) + 1 end
  counted[id] = true
end
if #rows > 0 then
  for _, id in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do count(id) end
  for _, lease in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
    count(string.match(lease, '^[^:]*'))
  end
  for at = 5, 6 do
    for _, id in ipairs(redis.call('ZRANGE', KEYS[at], 0, -1)) do count(id) end
  end
end
local function limit_passed(id, owner)
  local limit = limits[owner] or limits[ARGV[2]] or 0
  if owner == '' or limit == 0 then return nil end
  local others = (running[owner] or 0) - (counted[id] and 1 or 0)
  return others >= limit and limit or nil
end
local best, best_priority, best_is_new
local taken = {false, 0}
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  if string.match(id, '^[a-zA-Z0-9_%-]+$') then
    local found = redis.pcall('HMGET', ARGV[1] .. id, 'priority', 'in_front', 'owner', 'held_at')
    local limit, held_at = limit_passed(id, found[3] or ''), tonumber(found[4] or '')
    if limit ~= held_at then
      if limit then redis.call('HSET', ARGV[1] .. id, 'held_at', limit)
      else redis.call('HDEL', ARGV[1] .. id, 'held_at') end
    end
    local priority, is_new = tonumber(found[1] or 0) or 0, (found[2] or '') == '' and 1 or 0
    local is_better = not best or priority > best_priority
    if best and priority == best_priority then
      is_better = is_new < best_is_new or (is_new == best_is_new and id < best)
    end
    if limit then taken[2] = taken[2] + 1
    elseif is_better then best, best_priority, best_is_new = id, priority, is_new end
  else
    redis.call('LREM', KEYS[1], 1, id)
    table.insert(taken, id)
  end
end
if best then
  redis.call('LREM', KEYS[1], 1, best)
  redis.call('RPUSH', KEYS[2], best)
  taken[1] = best
end
return taken
"""

logger = logging.getLogger(__name__)


class DeliveryRefused(Exception):
    """A delivery has an unknown task, or arguments other than the id of its job."""


class Delivery(RQJob):
    """A delivery of a recorded job, which runs one of ``tasks`` with the id of the job.

    RQ imports the function and the callbacks that a delivery names, and posts to its webhooks:
    write access to Redis would allow running any code. This class only looks tasks up by name.
    """

    tasks: ClassVar[Mapping[str, Task]] = MappingProxyType({})  # by name; workers set it

    @property
    def func(self) -> Task:
        """The task to run. Raises ``DeliveryRefused``."""
        try:
            name, args, kwargs = self.func_name, self.args, self.kwargs
        except DeserializationError as error:
            raise DeliveryRefused("its data cannot be read") from error
        task = self.tasks.get(name) if isinstance(name, str) else None
        if task is None:
            raise DeliveryRefused(f"there is no task named {str(name)[:100]!r}")
        if args != [self.id] or kwargs or not JOB_ID.fullmatch(self.id):
            raise DeliveryRefused("its only argument must be the id of its job")
        return task

    def restore(self, raw_data: Any) -> None:  # noqa: ANN401 - the signature is RQ's
        """Read the fields. Deletes a delivery with fields that RQ cannot read, as if missing."""
        try:
            super().restore(raw_data)
        except Exception as error:  # of several classes, one for each kind of field
            refuse(self.id, f"its data cannot be read: {error!r:.200}")
            self.connection.delete(self.key)
            raise NoSuchJobError(f"delivery {self.id} cannot be read") from error
        self._success_callback_name = None
        self._failure_callback_name = None
        self._stopped_callback_name = None
        self.webhooks = []


def refuse(delivery_id: str | bytes, reason: object) -> None:
    """Log that a delivery is not run. The caller deletes it, and ``recover`` finds its job."""
    logger.error("delivery %r is refused: %s", delivery_id, reason)


class _TakenQueue(IntermediateQueue):
    """Jobs that are taken off the queue but not leased yet, usually for milliseconds."""

    lease_s = LEASE_S

    def should_be_cleaned_up(self, job_id: str) -> bool:
        first_seen = self.get_first_seen(job_id)
        return first_seen is not None and now() - first_seen > timedelta(seconds=self.lease_s)

    def remove(self, job_id: str) -> None:
        super().remove(job_id)
        self.connection.delete(self.get_first_seen_key(job_id))


class LeasedQueue(Queue):
    """RQ's queue, ordered by priority, and blocked by a dead worker for at most a lease.

    RQ delivers in the order of its list. Here a worker takes the best job of the list in one atomic
    step, by the priorities in the records, so that a crash cannot leave a wrong order behind.
    """

    lease_s = LEASE_S

    @classmethod
    def lmove(cls, connection: redis.Redis, queue_key: str, timeout: int | None) -> Any:  # noqa: ANN401 - as in RQ
        """Take the best job that may run: the queue's key and the job's id, or None without one.

        With a ``timeout`` in seconds it waits for a job, and raises ``DequeueTimeout``. That takes
        ``_LOOK_AGAIN_S`` while jobs wait and none of them may run.
        """
        with wrong_types_as_outages():
            # moving an entry to where it is changes nothing, but waits for one
            if timeout is not None and not connection.blmove(
                queue_key, queue_key, timeout, "LEFT", "LEFT"
            ):
                raise DequeueTimeout(timeout, queue_key)
            taken, num_passed_over, *unreadable = connection.register_script(_TAKE)(
                keys=_keys_of_taking(connection, queue_key), args=[RECORD.format(id=""), ANY_TENANT]
            )
        for entry in unreadable:
            refuse(entry, "it is not the id of a job")
            connection.delete(Delivery.redis_job_namespace_prefix.encode() + entry)
        if taken is None and timeout is not None:  # another worker took it, or none may run
            if num_passed_over:
                threading.Event().wait(min(timeout, _LOOK_AGAIN_S))
            raise DequeueTimeout(timeout, queue_key)
        return None if taken is None else (queue_key, taken)

    @classmethod
    def _fetch_dequeued_job(
        cls,
        connection: redis.Redis,
        queue_key: str,
        job_id: str,
        *args: Any,  # noqa: ANN401 - handed to RQ
        **kwargs: Any,  # noqa: ANN401 - handed to RQ
    ) -> tuple[RQJob, Queue] | None:
        job = super()._fetch_dequeued_job(connection, queue_key, job_id, *args, **kwargs)
        if job is None:  # there is no such delivery, or it was refused
            key = IntermediateQueue.get_intermediate_queue_key(queue_key)
            connection.lrem(key, 1, job_id)
        return job

    def acquire_maintenance_lock(self) -> bool:
        return bool(self.connection.set(self.registry_cleaning_key, 1, nx=True, ex=self.lease_s))

    @property
    def intermediate_queue(self) -> IntermediateQueue:
        taken = _TakenQueue(self.key, connection=self.connection)
        taken.lease_s = self.lease_s
        return taken


def _keys_of_taking(connection: redis.Redis, queue_key: str) -> list[str]:
    """The keys of ``_TAKE``."""
    name = queue_key.removeprefix(Queue.redis_queue_namespace_prefix)
    leases = StartedJobRegistry(name, connection=connection)
    taken = IntermediateQueue.get_intermediate_queue_key(queue_key)
    return [queue_key, taken, leases.key, RUNNING_LIMITS, *_INDEXES_OF_RUNNING]


class PruneQueue:
    """Delivers recorded jobs to workers. Every method may raise ``JobStoreUnavailable``."""

    def __init__(self, client: redis.Redis, *, task: str = TASK, lease_s: int = LEASE_S) -> None:
        self._forget_ended = client.register_script(_FORGET_ENDED)
        self.rq = LeasedQueue(
            "prune", connection=client, job_class=Delivery, serializer=JSONSerializer
        )
        self.rq.lease_s = lease_s
        self._task = task

    def enqueue(self, job_id: str) -> None:
        """Deliver a recorded job. Does nothing while an earlier delivery is pending."""
        with redis_errors_translated(), suppress(DuplicateJobError):
            self._forget_ended(keys=[Delivery.key_for(job_id)])
            self.rq.enqueue_call(
                self._task,
                args=(job_id,),
                job_id=job_id,
                unique=True,
                timeout=-1,
                retry=Retry(max=_MAX_RETRIES),
                result_ttl=RESULT_KEPT_S,
                failure_ttl=RESULT_KEPT_S,
            )

    def set_running_limits(self, limits: Mapping[str, int]) -> None:
        """Let workers run so many jobs of each tenant at once, from the next that is taken on.

        0 is no limit. ``ANY_TENANT`` stands for the tenants that are not named.
        """
        with redis_errors_translated(), self.rq.connection.pipeline(transaction=True) as pipeline:
            pipeline.delete(RUNNING_LIMITS)
            for tenant, limit in limits.items():
                pipeline.hset(RUNNING_LIMITS, tenant, str(limit))
            pipeline.execute()

    def enqueue_again(self, store: JobStore, job_id: str) -> None:
        """Deliver a job that was requeued before its last delivery had ended."""
        with _skipped_if_ended(job_id):
            if store.get(job_id).status is JobStatus.QUEUED:
                self.enqueue(job_id)

    def recover(self, store: JobStore) -> None:
        """Deliver the unfinished jobs that no worker has and that have no pending delivery."""
        with redis_errors_translated():
            job_ids = [job_id for status in _UNFINISHED for job_id in store.ids(status)]
            with self.rq.connection.pipeline(transaction=False) as pipeline:
                for job_id in job_ids:
                    pipeline.hget(Delivery.key_for(job_id), "status")
                statuses = each_of(pipeline)
            # read after the statuses: a job that was started in between has its lease by now
            leased = set(self.rq.started_job_registry.get_job_ids(cleanup=False))
        for job_id, status in zip(job_ids, statuses, strict=True):
            is_waiting = status == DeliveryStatus.QUEUED.encode()
            if not is_waiting and job_id not in leased:
                with _skipped_if_ended(job_id):
                    self._redeliver(store, job_id)

    def _redeliver(self, store: JobStore, job_id: str) -> None:
        status = store.requeue(
            job_id, "delivered again, because its delivery was missing", is_lost=False
        )
        if status is JobStatus.QUEUED:
            with redis_errors_translated():
                self.rq.connection.delete(Delivery.key_for(job_id))
            self.enqueue(job_id)

    def requeue(self, store: JobStore, delivery: RQJob, reason: str, pipeline: Pipeline) -> None:
        """Deliver the job again when ``pipeline`` is executed, unless it was asked to stop."""
        if _requeued(store, delivery.id, reason, is_lost=False):
            delivery.retry(self.rq, pipeline)
        else:
            pipeline.delete(delivery.key)


def worker_lost(store: JobStore, delivery: RQJob) -> None:
    """Record that the worker died, and let RQ deliver again only if the job may be retried."""
    if _requeued(store, delivery.id, "its worker died", is_lost=True):
        with _skipped_if_ended(delivery.id):
            if store.get(delivery.id).num_lost < DELIVERIES:
                return
            give_up(store, delivery.id)
    delivery.retries_left = 0


def _requeued(store: JobStore, job_id: str, reason: str, *, is_lost: bool) -> bool:
    """Requeue the job, and return whether it is queued now."""
    status = None
    with _skipped_if_ended(job_id):
        status = store.requeue(job_id, reason, is_lost=is_lost)
    return status is JobStatus.QUEUED


def give_up(store: JobStore, job_id: str) -> None:
    """Fail a job that has lost ``DELIVERIES`` workers without progress."""
    message = (
        f"{DELIVERIES} workers died at the same point of this job: see the log of the last one"
    )
    store.fail(job_id, JobError("worker_lost", message))


@contextmanager
def _skipped_if_ended(job_id: str) -> Iterator[None]:
    """Skip the rest of the block once the job has ended or was deleted."""
    try:
        yield
    except (IllegalTransition, JobNotFound) as error:
        logger.info("job %s is not delivered again: %s", job_id, error)
