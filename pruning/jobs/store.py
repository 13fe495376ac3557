"""The job store: records, statuses and events of pruning jobs. Only this module changes them.

Every change is one call of an atomic script, see ``script.py``. ``queue.py`` delivers the jobs to
workers, and notes which it has passed over.
"""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import redis

from pruning.jobs import script, transitions
from pruning.jobs.conditions import PENDING, UNCONDITIONAL, Conditions
from pruning.jobs.job import (
    JOB_ID,
    IllegalTransition,
    Job,
    JobError,
    JobEvent,
    JobNotFound,
    JobPage,
    JobStatus,
    Sink,
    StopRequest,
    Webhook,
)
from pruning.jobs.keys import EVENTS, INDEX, RECORD, SEARCH
from pruning.jobs.record import stored_job, texts
from pruning.jobs.redis import JobStoreUnavailable, each_of, redis_errors_translated
from pruning.jobs.script import STATUS_INDEXES, Change, Outcome, read_event
from pruning.search.state import SearchState
from pruning.spec.prune import PruneSpec

_OWNERS_AT_ONCE = 256

# The errors of reading a job, and of changing its status.
READ_RAISES = (JobNotFound, JobStoreUnavailable)
CHANGE_RAISES = (*READ_RAISES, IllegalTransition)


class JobStore:
    """Pruning jobs in Redis. Every method may raise ``JobStoreUnavailable``.

    Methods that take an id raise ``JobNotFound``. Methods for workers take the ``attempt`` of
    ``start``, and raise ``StaleAttempt`` once another worker has the job. ``record`` returns the
    request to stop, if there is one.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self._script = client.register_script(script.SCRIPT)
        self._creation = client.register_script(script.CREATE)

    def close(self) -> None:
        self._redis.close()

    def create(
        self,
        spec: PruneSpec,
        metadata: Mapping[str, str] | None = None,
        conditions: Conditions = UNCONDITIONAL,
        priority: int = 0,
        webhook: Webhook | None = None,
        source: str | None = None,
        search_of: str | None = None,
    ) -> Job:
        """Record a job as queued. ``PruneQueue.enqueue`` delivers it.

        A job with a ``source`` heals that checkpoint as its spec says, and prunes nothing. One with
        ``search_of`` goes on with the search of that job, if its record is still there. Raises as
        ``create_job`` if the ``conditions`` do not hold.
        """
        now = time.time()
        job_id = f"prn-{int(now * 1e6):013x}{secrets.token_hex(4)}"
        fields = {
            "id": job_id,
            "spec": json.dumps(spec.to_dict()),
            "status": JobStatus.QUEUED.value,
            "created_at": str(now),
            "status_since": str(now),
            "priority": str(priority),
            "metadata": json.dumps(dict(metadata or {})),
            "webhook": json.dumps(asdict(webhook)) if webhook else "",
            "source": source or "",
            "owner": conditions.owner or "",
        }
        with redis_errors_translated():
            script.create_job(self._creation, fields, conditions, search_of)
        return Job.from_fields(fields) if search_of is None else self.get(job_id)

    def get(self, job_id: str) -> Job:
        if not JOB_ID.fullmatch(job_id):
            raise JobNotFound(job_id)
        with redis_errors_translated():
            record = self._records([job_id])[0]
        if not record:
            raise JobNotFound(job_id)
        return stored_job(job_id, record)

    def owner(self, job_id: str) -> str | None:
        """The tenant that the job belongs to; None if it has none, or does not exist."""
        if not JOB_ID.fullmatch(job_id):
            return None
        with redis_errors_translated():
            known: Any = self._redis.hget(RECORD.format(id=job_id), "owner")
        return known.decode() or None if known else None

    def list(
        self,
        limit: int = 20,
        after: str | None = None,
        status: JobStatus | None = None,
        owner: str | None = None,
    ) -> JobPage:
        """Return up to ``limit`` jobs, newest first, starting after the job ``after``.

        ``owner`` is a tenant: only its jobs and those without a tenant are listed.
        """
        if after is not None and not JOB_ID.fullmatch(after):
            raise JobNotFound(after)
        index = INDEX if status is None else STATUS_INDEXES[status]
        newest = b"+" if after is None else f"({after}".encode()
        with redis_errors_translated():
            ids = self._ids(index, newest, limit + 1, owner)
            listed = [job_id.decode(errors="replace") for job_id in ids[:limit]]
            records = zip(listed, self._records(listed), strict=True)
        jobs = (stored_job(job_id, record) for job_id, record in records if record)
        chosen = tuple(job for job in jobs if status in (None, job.status))
        return JobPage(chosen, has_more=len(ids) > limit)

    def _records(self, ids: Sequence[str]) -> Sequence[Any]:
        """The hash of each, or the error of Redis for what is none. Empty if there is no such job.

        Errors that mean that Redis is unavailable are raised.
        """
        with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in ids:
                pipeline.hgetall(RECORD.format(id=job_id))
            return each_of(pipeline)

    def _ids(self, index: str, newest: bytes, num: int, owner: str | None) -> Sequence[bytes]:
        """The first ``num`` ids of the index that the owner may see, from ``newest`` on."""
        if owner is None:
            members: Any = self._redis.zrevrangebylex(index, newest, "-", start=0, num=num)
            return tuple(members)
        seen: list[bytes] = []
        while len(seen) < num:
            ids: Any = self._redis.zrevrangebylex(index, newest, "-", start=0, num=_OWNERS_AT_ONCE)
            if not ids:
                break
            with self._redis.pipeline(transaction=False) as pipeline:
                for job_id in ids:
                    pipeline.hget(RECORD.format(id="").encode() + job_id, "owner")
                owners = each_of(pipeline)
            of_owner = (None, b"", owner.encode())
            seen += [job_id for job_id, one in zip(ids, owners, strict=True) if one in of_owner]
            newest = b"(" + ids[-1]
        return seen[:num]

    def ids(self, status: JobStatus) -> tuple[str, ...]:
        """The ids of all jobs in that status, oldest first."""
        with redis_errors_translated():
            entries: Any = self._redis.zrange(STATUS_INDEXES[status], 0, -1)
        return _known_ids(entries)

    def counts(self) -> Mapping[JobStatus, int]:
        """The number of jobs in each status."""
        with redis_errors_translated(), self._redis.pipeline(transaction=True) as pipeline:
            for index in STATUS_INDEXES.values():
                pipeline.zcard(index)
            return dict(zip(STATUS_INDEXES, pipeline.execute(), strict=True))

    def events(
        self, job_id: str, after: str | None = None, limit: int = 100
    ) -> tuple[JobEvent, ...]:
        """Return up to ``limit`` events, oldest first, starting after the event ``after``."""
        self.get(job_id)
        oldest = "-" if after is None else f"({after}"
        with redis_errors_translated():
            entries: Any = self._redis.xrange(EVENTS.format(id=job_id), min=oldest, count=limit)
        return tuple(read_event(entry_id.decode(), texts(entry)) for entry_id, entry in entries)

    def pending_ids(self) -> frozenset[str]:
        """The jobs whose checkpoint is not published yet, or still to be sent to the store."""
        with redis_errors_translated(), self._redis.pipeline() as pipeline:
            for index in PENDING:
                pipeline.zrange(index, 0, -1)
            indexes = pipeline.execute()
        return frozenset(job_id for ids in indexes for job_id in _known_ids(ids))

    def cancel(self, job_id: str) -> Job:
        """Cancel a waiting job, or ask the worker of a running one to stop. Idempotent.

        Raises ``IllegalTransition`` if the job has ended.
        """
        self._change(job_id, transitions.cancelling())
        return self.get(job_id)

    def pause(self, job_id: str) -> Job:
        """Pause a waiting job, or ask the worker of a running one to stop. Idempotent.

        Raises ``IllegalTransition`` if the job has ended or is being cancelled.
        """
        self._change(job_id, *transitions.pausing())
        return self.get(job_id)

    def resume(self, job_id: str) -> Job:
        """Queue a paused job, for the caller to enqueue, or withdraw a pending pause request.

        Raises ``IllegalTransition`` if the job is neither paused nor about to be.
        """
        self._change(job_id, *transitions.resumed())
        return self.get(job_id)

    def retry(self, job_id: str, spec: PruneSpec, conditions: Conditions = UNCONDITIONAL) -> Job:
        """Queue a job that has failed or was cancelled, for the caller to enqueue.

        It keeps what its search has found, so ``spec`` must describe the same search. Raises
        ``IllegalTransition`` if it is in another status, and as ``raise_unmet``.
        """
        change = transitions.retried(spec, conditions.checkpoint_bytes)
        self._change(job_id, change, conditions=conditions)
        return self.get(job_id)

    def requeue(self, job_id: str, reason: str, *, is_lost: bool) -> JobStatus:
        """Take the job from a worker that is gone, and queue it, or cancel or pause as requested.

        ``is_lost`` counts the worker as lost with the job.
        """
        return self._change(job_id, *transitions.released(reason, is_lost=is_lost)).status

    def start(self, job_id: str, worker: str) -> Job:
        """Take the job from the queue, or from a lost worker.

        The ``attempt`` of the returned job identifies the caller. Raises ``IllegalTransition`` if
        the job has ended or was asked to stop.
        """
        outcome = self._change(job_id, *transitions.started(worker))
        return replace(self.get(job_id), attempt=outcome.attempt)

    def record(self, job_id: str, change: Change, attempt: int | None = None) -> StopRequest | None:
        """Record the progress of a worker, as one of ``transitions`` says."""
        return self._change(job_id, change, attempt=attempt).stop_request

    def search_state(self, job_id: str) -> SearchState:
        """The state of the job's search, over all its attempts."""
        with redis_errors_translated():
            return SearchState.from_fields(texts(self._redis.hgetall(SEARCH.format(id=job_id))))

    def succeed(
        self, job_id: str, model: str, attempt: int | None = None, sinks: Sequence[Sink] = ()
    ) -> JobStatus:
        return self._change(job_id, transitions.succeeded(model, sinks), attempt=attempt).status

    def fail(self, job_id: str, error: JobError, attempt: int | None = None) -> JobStatus:
        return self._change(job_id, transitions.failed(error), attempt=attempt).status

    def stopped(self, job_id: str, attempt: int | None = None) -> JobStatus:
        """Record that the worker has stopped. A job whose pause was withdrawn is queued again."""
        return self._change(job_id, *transitions.stopped(), attempt=attempt).status

    def short_of_memory(self, job_id: str, reason: str, attempt: int | None = None) -> JobStatus:
        """Requeue the job, to be tried again with half the batch."""
        return self._change(job_id, *transitions.short_of_memory(reason), attempt=attempt).status

    def _change(
        self,
        job_id: str,
        *changes: Change,
        attempt: int | None = None,
        conditions: Conditions | None = None,
    ) -> Outcome:
        if not JOB_ID.fullmatch(job_id):
            raise JobNotFound(job_id)
        with redis_errors_translated():
            return script.apply(self._script, job_id, changes, attempt, conditions)


def _known_ids(entries: Sequence[bytes]) -> tuple[str, ...]:
    """Those that are ids of jobs: an index may hold anything."""
    known = (job_id.decode(errors="replace") for job_id in entries)
    return tuple(text for text in known if JOB_ID.fullmatch(text))
