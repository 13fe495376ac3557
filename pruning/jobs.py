"""The job store: records, states and events of pruning jobs. The one file that knows Redis keys.

Every change is one script call: the check of the state, the new fields, the indexes and the
event happen together or not at all. How jobs reach a worker is the business of ``queue.py``.

    key                     holds                                    lifetime
    sleb:job:{id}           hash: one record                         permanent
    sleb:job:{id}:events    stream: what happened, the last 1000     permanent
    sleb:job:{id}:search    hash: what its search has found so far   until the job has ended
    sleb:jobs               zset: all ids, in order of creation      permanent
    sleb:jobs:{status}      zset: the ids in that status, likewise   permanent
    sleb:idempotency:{key}  string: a request's digest and its job   24 h; 30 s without a job

The keys of RQ begin with ``rq:``; ``queue.py`` says which of them stay.
"""

import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import redis
from redis import exceptions as redis_errors

from pruning import job_change, job_creation, job_steps
from pruning.job import (
    IllegalTransition,
    Job,
    JobError,
    JobEvent,
    JobPage,
    JobStatus,
    Phase,
)
from pruning.job_change import SCRIPT, Change, Outcome, Place, read_event
from pruning.removal import Removal
from pruning.search_state import Plan, Scored, SearchState
from pruning.spec import PruneSpec

RECORD = "sleb:job:{id}"
EVENTS = "sleb:job:{id}:events"
SEARCH = "sleb:job:{id}:search"
INDEX = "sleb:jobs"
STATUS_INDEX = "sleb:jobs:{status}"
IDEMPOTENCY = "sleb:idempotency:{key}"  # its digest: a key may be any text
OF_ONE_JOB = (RECORD, EVENTS, SEARCH)  # what goes when it is deleted
MAX_EVENTS = 1000
PERMANENT_KEYS = ("sleb:job:*", "sleb:jobs", "sleb:jobs:*")

_ID = re.compile(r"prn-[0-9a-f]{21}")
_STATUS_INDEXES = {status: STATUS_INDEX.format(status=status) for status in JobStatus}


class JobNotFound(LookupError):
    """There is no such job."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"there is no job {job_id[:64]!r}: it was deleted, or the id is mistyped")
        self.job_id = job_id


class StaleAttempt(RuntimeError):
    """A worker that had lost the job to another one tried to write to it."""


class JobStoreUnavailable(ConnectionError):
    """Redis cannot be reached, or refuses to write."""


@contextmanager
def reaching_redis() -> Iterator[None]:
    """Turn what redis-py raises while Redis is away into ``JobStoreUnavailable``."""
    try:
        yield
    except (
        redis_errors.ConnectionError,
        redis_errors.TimeoutError,
        redis_errors.ReadOnlyError,
        redis_errors.OutOfMemoryError,
    ) as error:
        raise JobStoreUnavailable(f"the job store does not answer: {error}") from error


class JobStore:
    """Every method may raise ``JobStoreUnavailable``; those that take an id, ``JobNotFound``.

    What a worker calls takes the ``attempt`` that ``start`` gave it, raises ``StaleAttempt`` once
    another worker has the job, and returns the job's status: CANCELLING tells it to stop.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._script = client.register_script(SCRIPT)
        self._creation = client.register_script(job_creation.SCRIPT)

    def close(self) -> None:
        self._redis.close()

    def create(
        self,
        spec: PruneSpec,
        metadata: Mapping[str, str] | None = None,
        terms: job_creation.Terms = job_creation.UNCONDITIONAL,
    ) -> Job:
        """Record a queued job. It waits until somebody enqueues it.

        Raises ``QueueFull`` or ``IdempotencyInFlight``, as the ``terms`` ask.
        """
        now = time.time()
        job_id = f"prn-{int(now * 1e6):013x}{secrets.token_hex(4)}"
        fields = job_steps.new_record(job_id, spec, metadata or {}, now)
        own = (RECORD.format(id=job_id), EVENTS.format(id=job_id))
        with reaching_redis():
            keys = (*own, INDEX, _STATUS_INDEXES[JobStatus.QUEUED])
            job_creation.create(self._creation, keys, fields, terms)
        return Job.from_fields(fields)

    def get(self, job_id: str) -> Job:
        if not _ID.fullmatch(job_id):
            raise JobNotFound(job_id)
        with reaching_redis():
            record = self._redis.hgetall(RECORD.format(id=job_id))
        if not record:
            raise JobNotFound(job_id)
        return Job.from_fields(_texts(record))

    def list(
        self, limit: int = 20, after: str | None = None, status: JobStatus | None = None
    ) -> JobPage:
        """Up to ``limit`` jobs, the newest first, beginning behind the job ``after``."""
        if after is not None and not _ID.fullmatch(after):
            raise JobNotFound(after)
        index = INDEX if status is None else _STATUS_INDEXES[status]
        newest = "+" if after is None else f"({after}"
        with reaching_redis():
            ids: Any = self._redis.zrevrangebylex(index, newest, "-", start=0, num=limit + 1)
            with self._redis.pipeline(transaction=False) as pipeline:
                for job_id in ids[:limit]:
                    pipeline.hgetall(RECORD.format(id=job_id.decode()))
                records = pipeline.execute()
        jobs = (Job.from_fields(_texts(record)) for record in records if record)
        found = tuple(job for job in jobs if status in (None, job.status))
        return JobPage(found, has_more=len(ids) > limit)

    def ids(self, status: JobStatus) -> tuple[str, ...]:
        """Of all jobs in that status, the oldest first."""
        with reaching_redis():
            found: Any = self._redis.zrange(_STATUS_INDEXES[status], 0, -1)
        return tuple(job_id.decode() for job_id in found)

    def counts(self) -> Mapping[JobStatus, int]:
        """How many jobs there are in every status."""
        with reaching_redis(), self._redis.pipeline(transaction=True) as pipeline:
            for index in _STATUS_INDEXES.values():
                pipeline.zcard(index)
            return dict(zip(_STATUS_INDEXES, pipeline.execute(), strict=True))

    def events(
        self, job_id: str, after: str | None = None, limit: int = 100
    ) -> tuple[JobEvent, ...]:
        """The oldest first, beginning behind the event ``after``."""
        self.get(job_id)
        oldest = "-" if after is None else f"({after}"
        with reaching_redis():
            entries: Any = self._redis.xrange(EVENTS.format(id=job_id), min=oldest, count=limit)
        return tuple(read_event(entry_id.decode(), _texts(entry)) for entry_id, entry in entries)

    def cancel(self, job_id: str) -> Job:
        """End a job that waits, ask the worker of one that runs. Once more changes nothing.

        Raises ``IllegalTransition`` if the job has ended.
        """
        self._change(job_id, job_steps.cancelling())
        return self.get(job_id)

    def requeue(self, job_id: str, reason: str, *, is_lost: bool) -> JobStatus:
        """Take the job from a worker that has stopped; one that was being cancelled is cancelled.

        ``is_lost`` counts it against the job: its worker died with it.
        """
        return self._write(job_id, job_steps.requeued(reason, is_lost=is_lost), None)

    def start(self, job_id: str, worker: str) -> Job:
        """Take the job, from the queue or from a worker that was lost.

        The ``attempt`` of the job it returns belongs to the caller alone. Raises
        ``IllegalTransition`` if the job has ended or is to be cancelled.
        """
        try:
            outcome = self._change(job_id, job_steps.started(worker))
        except IllegalTransition as refused:
            if refused.status is not JobStatus.RUNNING:
                raise
            outcome = self._change(job_id, job_steps.taken_over(worker))
        return replace(self.get(job_id), attempt=outcome.attempt)

    def set_phase(self, job_id: str, phase: Phase, attempt: int | None = None) -> JobStatus:
        return self._write(job_id, job_steps.phase_begun(phase), attempt)

    def search_state(self, job_id: str) -> SearchState:
        """What the job's search has found so far, by whatever worker."""
        with reaching_redis():
            return SearchState.from_fields(_texts(self._redis.hgetall(SEARCH.format(id=job_id))))

    def searching(
        self,
        job_id: str,
        plan: Plan,
        done: int,
        total: int,
        attempt: int | None = None,
        *,
        is_anew: bool = False,
    ) -> JobStatus:
        """The search goes on behind ``done`` evaluations; anew, what was found is forgotten."""
        change = job_steps.searching(plan, done, total, is_anew=is_anew)
        return self._write(job_id, change, attempt)

    def evaluated(
        self,
        job_id: str,
        done: int,
        total: int,
        attempt: int | None = None,
        scored: Scored | None = None,
    ) -> JobStatus:
        """Count the candidate evaluation ``done`` of ``total``, and keep what it gave."""
        return self._write(job_id, job_steps.evaluated(done, total, scored), attempt)

    def removed(
        self, job_id: str, removals: Sequence[Removal], attempt: int | None = None
    ) -> JobStatus:
        """``removals`` are all of this search so far."""
        return self._write(job_id, job_steps.removed(removals), attempt)

    def succeed(self, job_id: str, pruned_model: str, attempt: int | None = None) -> JobStatus:
        return self._write(job_id, job_steps.succeeded(pruned_model), attempt)

    def fail(self, job_id: str, error: JobError, attempt: int | None = None) -> JobStatus:
        return self._write(job_id, job_steps.failed(error), attempt)

    def cancelled(self, job_id: str, attempt: int | None = None) -> JobStatus:
        """The worker has obeyed; what was found stays in the record."""
        return self._write(job_id, job_steps.cancelled(), attempt)

    def _write(self, job_id: str, change: Change, attempt: int | None) -> JobStatus:
        return JobStatus(self._change(job_id, change, attempt).status)

    def _change(self, job_id: str, change: Change, attempt: int | None = None) -> Outcome:
        if not _ID.fullmatch(job_id):
            raise JobNotFound(job_id)
        record, events, search = (key.format(id=job_id) for key in (RECORD, EVENTS, SEARCH))
        place = Place(job_id, record, events, search, _STATUS_INDEXES, MAX_EVENTS)
        with reaching_redis():
            outcome = job_change.apply(self._script, place, change, attempt)
        if outcome.code == "missing":
            raise JobNotFound(job_id)
        if outcome.code == "stale":
            raise StaleAttempt(f"job {job_id} has a newer worker than attempt {attempt}")
        if outcome.code == "refused":
            raise IllegalTransition(job_id, JobStatus(outcome.status), change.name)
        return outcome


def _texts(record: Mapping[Any, Any]) -> dict[str, str]:
    """A hash as redis-py gives it to a client that leaves bytes alone, as RQ's must."""
    return {name.decode(): value.decode() for name, value in record.items()}
