"""Deletion of ended jobs: the published checkpoint, the record, and all other keys of the job.

After a period, a sweep deletes what a client could delete by DELETE. It may be interrupted, and
several may run at once.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import redis

from pruning.checkpoints.same_search import is_of_search
from pruning.checkpoints.staging import discard_staged, sweep
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointNotFound, CheckpointStore
from pruning.healing.places import healed_beside
from pruning.jobs.job import IllegalTransition, Job, JobNotFound, JobStatus, Sink, created_at
from pruning.jobs.keys import INDEX, KEYS_OF_A_JOB, OUTBOX, SINK, STATUS_INDEX
from pruning.jobs.outbox import SinkOutbox
from pruning.jobs.record import BROKEN
from pruning.jobs.redis import redis_errors_translated
from pruning.jobs.script import status_of
from pruning.jobs.store import JobStore
from pruning.models.names import VariantName, healed_name

STEADY_S = 600.0
_JUMP_S = 30.0  # between two looks; more than a clock is corrected by without a step
_FINALS = tuple(status for status in JobStatus if status.is_final)
_OTHERS = tuple(status for status in JobStatus if not status.is_final)

logger = logging.getLogger(__name__)

# KEYS the outbox, and the keys of the job, its webhook messages first and its record second. ARGV
# the id, the number of indexes of which one lists it if it has ended, these, and all others. A
# client may have queued it again: returns its status then. With the number 0, it is not asked.
_DELETE = """
local num_ended = tonumber(ARGV[2])
if num_ended > 0 then
  local status = redis.call('HGET', KEYS[3], 'status')
  local is_ended = not status
  for at = 3, 2 + num_ended do is_ended = is_ended or redis.call('ZSCORE', ARGV[at], ARGV[1]) end
  if not is_ended then return status end
end
for _, message in ipairs(redis.call('HKEYS', KEYS[2])) do redis.call('ZREM', KEYS[1], message) end
for at = 2, #KEYS do redis.call('DEL', KEYS[at]) end
for at = 3, #ARGV do redis.call('ZREM', ARGV[at], ARGV[1]) end
"""


class CheckpointInUse(RuntimeError):
    """Aliases mean the checkpoint or a prefix of it."""


@dataclass(eq=False)
class JobDeletion:
    """Deletes ended jobs, or only their checkpoint, or only their record.

    Every method may raise ``JobStoreUnavailable``; methods that take an id raise ``JobNotFound``,
    and ``IllegalTransition`` if the job has not ended. Where checkpoints are in an object store as
    well, ``StoreError`` may be raised before anything is deleted here. An interrupted deletion can
    be repeated.
    A checkpoint for which ``aliases_of`` returns names, or raises ``ValueError``, is kept, by
    raising ``CheckpointInUse``.
    """

    client: redis.Redis
    jobs: JobStore
    checkpoints: CheckpointStore
    aliases_of: Callable[[str], Sequence[str]] = lambda _checkpoint: ()

    def delete(self, job_id: str) -> None:
        """Delete checkpoint and record, for good even if a stale worker is still publishing."""
        job = self._ended(job_id)
        self._unpublish(job)
        self._forget(job)
        self._unpublish(job)  # a worker that confirmed the job before may have published since

    def unpublish(self, job_id: str) -> None:
        """Delete only the checkpoint. The record keeps the removed blocks."""
        self._unpublish(self._ended(job_id))

    def forget(self, job_id: str) -> None:
        """Delete only the record. The checkpoint stays until it is deleted by hand."""
        self._forget(self._ended(job_id))

    def finish(self) -> None:
        """Delete what senders have left in the store that died while their job was deleted."""
        for name in SinkOutbox(self.client).withdrawn(Sink.STORE):
            for each in (healed_name(name), name):
                self.checkpoints.delete(each)

    def has_published(self, job: Job) -> bool:
        """Whether a checkpoint of this job's names exists and was published by it."""
        return any(self._published(job))

    def _published(self, job: Job) -> Iterator[str]:
        """The names of the checkpoints that the job has published; a corrupt one may be its own."""
        for name in (healed_name(job.checkpoint_name), job.checkpoint_name):
            try:
                manifest = self.checkpoints.manifest(name)
            except CheckpointNotFound:
                continue
            except CheckpointCorrupt:
                yield name
                continue
            is_plain = name == job.checkpoint_name
            if is_of_search(manifest, job.spec) if is_plain else manifest.healing is not None:
                yield name

    def _ended(self, job_id: str) -> Job:
        job = self.jobs.get(job_id)
        if not job.status.is_final:
            raise IllegalTransition(job_id, job.status, "delete")
        return job

    def _unpublish(self, job: Job) -> None:
        try:
            aliases = self.aliases_of(job.checkpoint_name)
        except ValueError as error:  # they cannot be read
            raise CheckpointInUse(
                f"cannot check whether {job.checkpoint_name!r} has an alias: {error}"
            ) from error
        if aliases:
            raise CheckpointInUse(
                f"{job.checkpoint_name!r} has the alias {', '.join(aliases)}: change or remove "
                "the alias first"
            )
        SinkOutbox(self.client).withdraw(Sink.STORE, job)
        self.checkpoints.refresh()
        places = healed_beside(self.checkpoints.path(job.checkpoint_name))
        published = [*self._published(job)]
        for path in (places.target, places.source):
            discard_staged(path)
            if path.name in published:
                self.checkpoints.delete(path.name)
        places.discard_state()

    def _forget(self, job: Job) -> None:
        keys = [OUTBOX, *(key.format(id=job.id) for key in KEYS_OF_A_JOB)]
        ended = [STATUS_INDEX.format(status=status) for status in _FINALS]
        ended += [SINK.format(sink=sink) for sink in Sink]
        others = [INDEX, *(STATUS_INDEX.format(status=status) for status in _OTHERS)]
        is_broken = job.error is not None and job.error.code == BROKEN  # whatever its status says
        num_ended = 0 if is_broken else len(ended)
        with redis_errors_translated():
            status: Any = self.client.register_script(_DELETE)(
                keys=keys, args=[job.id, num_ended, *ended, *others]
            )
        if status is not None:
            raise IllegalTransition(job.id, status_of(status), "delete")


@dataclass(frozen=True)
class RetentionPeriods:
    """Seconds from the end of a job to the deletion; None keeps forever."""

    jobs_s: float | None = None  # records and events
    checkpoints_s: float | None = None


@dataclass
class SteadyClock:
    """The time of this machine, if it has been going on evenly for a while.

    A clock that was set wrong, as after a start without a network, would make all jobs old.
    """

    steady_s: float = STEADY_S
    clock: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    offset_s: float | None = None  # of the time to the monotonic clock, at the last look
    steady_since_s: float = 0.0

    def now(self) -> float | None:
        """Seconds since the epoch; None if the clock may be wrong."""
        now, elapsed_s = self.clock(), self.monotonic()
        before, self.offset_s = self.offset_s, now - elapsed_s
        if before is None or abs(self.offset_s - before) > _JUMP_S:
            self.steady_since_s = elapsed_s
            if before is not None:
                logger.warning(
                    "the clock jumped by %.0f s: nothing expires for %.0f s",
                    self.offset_s - before,
                    self.steady_s,
                )
        return now if elapsed_s - self.steady_since_s >= self.steady_s else None


@dataclass(frozen=True)
class Retention:
    """Removes leftovers of dead processes, and expired checkpoints and records.

    A checkpoint without a job, such as one of ``sleb prune``, is never removed, and neither is one
    that an alias means.
    """

    periods: RetentionPeriods
    checkpoints: CheckpointStore
    jobs: JobStore
    deletion: JobDeletion
    clock: SteadyClock = field(default_factory=SteadyClock)

    def sweep(self) -> None:
        """Remove all that has expired. May raise ``JobStoreUnavailable`` or ``StoreError``."""
        sweep(self.checkpoints.root)
        if (now := self.clock.now()) is not None:
            self._remove_expired(now)
        self.deletion.finish()

    def _remove_expired(self, now: float) -> None:
        if (keep_s := self.periods.checkpoints_s) is not None:
            for name in self.checkpoints.names():
                # no job has it, it was deleted in between, or is kept for an alias
                with suppress(JobNotFound, CheckpointInUse):
                    job = self.jobs.get(VariantName.of_checkpoint(name).job or "")
                    if _ended_before(job, now - keep_s):
                        self.deletion.unpublish(job.id)
        if (keep_s := self.periods.jobs_s) is not None:
            ended = tuple(self._ended(now - keep_s))
            if ended:
                self.checkpoints.refresh()  # knows what was sent by the time these were read
            for job in ended:
                if not self._is_needed(job):
                    with suppress(JobNotFound):
                        self.deletion.forget(job.id)

    def _ended(self, before: float) -> Iterator[Job]:
        for status in JobStatus:
            for job_id in self.jobs.ids(status) if status.is_final else ():
                if created_at(job_id) > before:
                    break  # as all that follow: the ids are in order of creation
                with suppress(JobNotFound):
                    job = self.jobs.get(job_id)
                    if _ended_before(job, before):
                        yield job

    def _is_needed(self, job: Job) -> bool:
        """Whether the record is needed to send the checkpoint, or to know when it expires."""
        upload = job.sinks.get(Sink.STORE)
        if upload is not None and not upload.is_sent:
            return True
        return self.periods.checkpoints_s is not None and self.deletion.has_published(job)


def _ended_before(job: Job, time_s: float) -> bool:
    """``time_s`` in seconds since the epoch."""
    return job.finished_at is not None and job.finished_at <= time_s
