"""The job store: records, states and events of pruning jobs. Nobody else changes them.

Every change is one script call: the check of the state, the new fields, the indexes and the
event happen together or not at all. How jobs reach a worker is the business of ``queue.py``.

A new job, recorded in one atomic step: with its place in the queue and its idempotency key, or
not at all. Knows the script, and no key names: those are given to it.
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import redis
from redis.commands.core import Script

from pruning.jobs import script, transitions
from pruning.jobs.job import (
    JOB_ID,
    IllegalTransition,
    Job,
    JobError,
    JobEvent,
    JobNotFound,
    JobPage,
    JobStatus,
    Phase,
    StopRequest,
    Webhook,
)
from pruning.jobs.keys import EVENTS, INDEX, MESSAGES, OUTBOX, RECORD, SEARCH, STATUS_INDEX
from pruning.jobs.redis import JobStoreUnavailable, redis_errors_translated
from pruning.jobs.script import SCRIPT, Change, Event, Outcome, Place, read_event
from pruning.removal import Removal
from pruning.search.state import Plan, Scored, SearchState
from pruning.spec.prune import PruneSpec

CLAIM_S = 30  # for checking a request; if the process dies meanwhile, so long is its key taken
KEY_KEPT_S = 24 * 3600

# KEYS record, events, index of all, index of the queued, and the idempotency key if there is one.
# Sent again because the answer was lost, it finds the record and changes nothing.
CREATE = """
local new = cjson.decode(ARGV[1])
if redis.call('EXISTS', KEYS[1]) == 1 then return 'done' end
if new.claim and redis.call('GET', KEYS[5]) ~= new.claim then return 'lost' end
if new.max_queued and redis.call('ZCARD', KEYS[4]) >= new.max_queued then return 'full' end
for name, value in pairs(new.fields) do redis.call('HSET', KEYS[1], name, value) end
redis.call('ZADD', KEYS[3], 0, new.fields.id)
redis.call('ZADD', KEYS[4], 0, new.fields.id)
local event = {}
for name, value in pairs(new.event) do
  event[#event + 1] = name
  event[#event + 1] = value
end
redis.call('XADD', KEYS[2], '*', unpack(event))
if new.claim then redis.call('SET', KEYS[5], new.binding, 'EX', new.key_kept_s) end
return 'done'
"""


class QueueFull(RuntimeError):
    """As many jobs wait as may wait; ``retry_after_s`` is when a place may be free."""

    def __init__(self, max_queued: int) -> None:
        super().__init__(
            f"{max_queued} jobs are waiting, and no more may: try again later, or start more "
            "workers"
        )
        self.retry_after_s = 60.0


class IdempotencyInFlight(RuntimeError):
    """Another request with this key is being answered at this moment."""

    retry_after_s = 1.0
    param = "Idempotency-Key"

    def __init__(self) -> None:
        super().__init__("a request with this Idempotency-Key is in flight: repeat it in a moment")


@dataclass(frozen=True)
class Claim:
    """The right to create the one job of an idempotency key, for ``CLAIM_S`` seconds."""

    key: str  # of Redis
    fingerprint: str  # of the request
    token: str  # of who holds the claim

    @property
    def reservation(self) -> str:
        return f"{self.fingerprint} {self.token}"

    def binding(self, job_id: str) -> str:
        return f"{self.fingerprint} {job_id}"


@dataclass(frozen=True)
class Terms:
    """On which a job is created: how many may wait, and whose claim it answers."""

    max_queued: int | None = None
    claim: Claim | None = None


UNCONDITIONAL = Terms()


def create_job(
    script: Script, keys: tuple[str, str, str, str], fields: Mapping[str, str], terms: Terms
) -> None:
    """Record the job with these ``fields``, through ``CREATE`` as it is registered with a client.

    ``keys`` are those of the record, the events, the index of all jobs and that of the queued.
    Raises ``QueueFull``, or ``IdempotencyInFlight`` if the claim has run out.
    """
    event = Event("job created").to_fields(float(fields["created_at"]))
    argument: dict[str, Any] = {
        "fields": fields,
        "event": {"status": JobStatus.QUEUED.value, **event},
    }
    # absent rather than null, which is true in Lua
    if terms.max_queued is not None:
        argument["max_queued"] = terms.max_queued
    if (claim := terms.claim) is not None:
        argument["claim"] = claim.reservation
        argument["binding"] = claim.binding(fields["id"])
        argument["key_kept_s"] = str(KEY_KEPT_S)
    claimed = [claim.key] if claim else []
    outcome = script(keys=[*keys, *claimed], args=[json.dumps(argument)])
    if outcome == b"full":
        raise QueueFull(terms.max_queued or 0)
    if outcome == b"lost":
        raise IdempotencyInFlight


MAX_EVENTS = 1000

_STATUS_INDEXES = {status: STATUS_INDEX.format(status=status) for status in JobStatus}


# what reading a job, and changing its status, may raise
READ_RAISES = (JobNotFound, JobStoreUnavailable)
CHANGE_RAISES = (*READ_RAISES, IllegalTransition)


class JobStore:
    """Every method may raise ``JobStoreUnavailable``; those that take an id, ``JobNotFound``.

    What a worker calls takes the ``attempt`` that ``start`` gave it, and raises ``StaleAttempt``
    once another worker has the job. What it writes on its way returns the request to stop, if
    there is one.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._script = client.register_script(SCRIPT)
        self._creation = client.register_script(CREATE)

    def close(self) -> None:
        self._redis.close()

    def create(
        self,
        spec: PruneSpec,
        metadata: Mapping[str, str] | None = None,
        terms: Terms = UNCONDITIONAL,
        priority: int = 0,
        webhook: Webhook | None = None,
    ) -> Job:
        """Record a queued job. It waits until somebody enqueues it.

        Raises ``QueueFull`` or ``IdempotencyInFlight``, as the ``terms`` ask.
        """
        now = time.time()
        job_id = f"prn-{int(now * 1e6):013x}{secrets.token_hex(4)}"
        fields = transitions.new_record(job_id, spec, metadata or {}, now, priority, webhook)
        own = (RECORD.format(id=job_id), EVENTS.format(id=job_id))
        with redis_errors_translated():
            keys = (*own, INDEX, _STATUS_INDEXES[JobStatus.QUEUED])
            create_job(self._creation, keys, fields, terms)
        return Job.from_fields(fields)

    def get(self, job_id: str) -> Job:
        if not JOB_ID.fullmatch(job_id):
            raise JobNotFound(job_id)
        with redis_errors_translated():
            record = self._redis.hgetall(RECORD.format(id=job_id))
        if not record:
            raise JobNotFound(job_id)
        return Job.from_fields(_texts(record))

    def list(
        self, limit: int = 20, after: str | None = None, status: JobStatus | None = None
    ) -> JobPage:
        """Up to ``limit`` jobs, the newest first, beginning behind the job ``after``."""
        if after is not None and not JOB_ID.fullmatch(after):
            raise JobNotFound(after)
        index = INDEX if status is None else _STATUS_INDEXES[status]
        newest = "+" if after is None else f"({after}"
        with redis_errors_translated():
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
        with redis_errors_translated():
            found: Any = self._redis.zrange(_STATUS_INDEXES[status], 0, -1)
        return tuple(job_id.decode() for job_id in found)

    def counts(self) -> Mapping[JobStatus, int]:
        """How many jobs there are in every status."""
        with redis_errors_translated(), self._redis.pipeline(transaction=True) as pipeline:
            for index in _STATUS_INDEXES.values():
                pipeline.zcard(index)
            return dict(zip(_STATUS_INDEXES, pipeline.execute(), strict=True))

    def events(
        self, job_id: str, after: str | None = None, limit: int = 100
    ) -> tuple[JobEvent, ...]:
        """The oldest first, beginning behind the event ``after``."""
        self.get(job_id)
        oldest = "-" if after is None else f"({after}"
        with redis_errors_translated():
            entries: Any = self._redis.xrange(EVENTS.format(id=job_id), min=oldest, count=limit)
        return tuple(read_event(entry_id.decode(), _texts(entry)) for entry_id, entry in entries)

    def cancel(self, job_id: str) -> Job:
        """End a job that waits, ask the worker of one that runs. Once more changes nothing.

        Raises ``IllegalTransition`` if the job has ended.
        """
        self._change(job_id, transitions.cancelling())
        return self.get(job_id)

    def pause(self, job_id: str) -> Job:
        """Take a job out of the queue, ask the worker of one that runs; once more changes nothing.

        Raises ``IllegalTransition`` if the job has ended or is to be cancelled.
        """
        self._change(job_id, *transitions.pausing())
        return self.get(job_id)

    def resume(self, job_id: str) -> Job:
        """Queue a paused job, to be enqueued by the caller; or withdraw a request to pause.

        Raises ``IllegalTransition`` if the job is neither paused nor about to be.
        """
        self._change(job_id, *transitions.resumed())
        return self.get(job_id)

    def requeue(self, job_id: str, reason: str, *, is_lost: bool) -> JobStatus:
        """Take the job from a worker that has gone; one that was to stop is cancelled or paused.

        ``is_lost`` counts it against a job that goes on: its worker died with it.
        """
        return self._change(job_id, *transitions.released(reason, is_lost=is_lost)).status

    def start(self, job_id: str, worker: str) -> Job:
        """Take the job, from the queue or from a worker that was lost.

        The ``attempt`` of the job it returns belongs to the caller alone. Raises
        ``IllegalTransition`` if the job has ended or is to stop.
        """
        outcome = self._change(job_id, *transitions.started(worker))
        return replace(self.get(job_id), attempt=outcome.attempt)

    def set_phase(
        self, job_id: str, phase: Phase, attempt: int | None = None
    ) -> StopRequest | None:
        return self._change(job_id, transitions.phase_begun(phase), attempt=attempt).stop_request

    def confirm(self, job_id: str, attempt: int | None = None) -> StopRequest | None:
        """Change nothing, but raise like all that a worker writes."""
        return self._change(job_id, transitions.confirmed(), attempt=attempt).stop_request

    def search_state(self, job_id: str) -> SearchState:
        """What the job's search has found so far, by whatever worker."""
        with redis_errors_translated():
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
    ) -> StopRequest | None:
        """The search goes on behind ``done`` evaluations; anew, what was found is forgotten."""
        change = transitions.searching(plan, done, total, is_anew=is_anew)
        return self._change(job_id, change, attempt=attempt).stop_request

    def evaluated(
        self,
        job_id: str,
        done: int,
        total: int,
        attempt: int | None = None,
        scored: Scored | None = None,
    ) -> StopRequest | None:
        """Count the candidate evaluation ``done`` of ``total``, and keep what it gave."""
        change = transitions.evaluated(done, total, scored)
        return self._change(job_id, change, attempt=attempt).stop_request

    def removed(
        self, job_id: str, removals: Sequence[Removal], attempt: int | None = None
    ) -> StopRequest | None:
        """``removals`` are all of this search so far."""
        return self._change(job_id, transitions.removed(removals), attempt=attempt).stop_request

    def warn(self, job_id: str, message: str, attempt: int | None = None) -> StopRequest | None:
        return self._change(job_id, transitions.warned(message), attempt=attempt).stop_request

    def succeed(self, job_id: str, pruned_model: str, attempt: int | None = None) -> JobStatus:
        return self._change(job_id, transitions.succeeded(pruned_model), attempt=attempt).status

    def fail(self, job_id: str, error: JobError, attempt: int | None = None) -> JobStatus:
        return self._change(job_id, transitions.failed(error), attempt=attempt).status

    def stopped(self, job_id: str, attempt: int | None = None) -> JobStatus:
        """The worker has obeyed. Back in the queue, if it was asked no longer."""
        return self._change(job_id, *transitions.stopped(), attempt=attempt).status

    def short_of_memory(self, job_id: str, reason: str, attempt: int | None = None) -> JobStatus:
        """The worker gives the job back, to be tried with half the batch."""
        return self._change(job_id, *transitions.short_of_memory(reason), attempt=attempt).status

    def _change(self, job_id: str, *changes: Change, attempt: int | None = None) -> Outcome:
        if not JOB_ID.fullmatch(job_id):
            raise JobNotFound(job_id)
        own = (key.format(id=job_id) for key in (RECORD, EVENTS, SEARCH, MESSAGES))
        place = Place(job_id, (*own, OUTBOX), _STATUS_INDEXES, MAX_EVENTS)
        with redis_errors_translated():
            return script.apply(self._script, place, changes, attempt)


def _texts(record: Mapping[Any, Any]) -> dict[str, str]:
    """A hash as redis-py gives it to a client that leaves bytes alone, as RQ's must."""
    return {name.decode(): value.decode() for name, value in record.items()}
