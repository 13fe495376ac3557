"""Retention: ended jobs and their checkpoints are deleted after a period.

A sweep deletes what a client could delete by DELETE. It may be interrupted, and several may run at
once.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from pruning.checkpoints.staging import sweep
from pruning.checkpoints.store import CheckpointStore
from pruning.jobs.deletion import CheckpointInUse, JobDeletion
from pruning.jobs.job import Job, JobNotFound, JobStatus, Sink, created_at
from pruning.jobs.store import JobStore
from pruning.models.names import VariantName

STEADY_S = 600.0
_JUMP_S = 30.0  # between two looks; more than a clock is corrected by without a step

logger = logging.getLogger(__name__)


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
                    "the clock has jumped by %.0f s: nothing expires for %.0f s",
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
            for job in self._with_checkpoint():
                if _ended_before(job, now - keep_s):
                    # deleted in between, or kept for an alias
                    with suppress(JobNotFound, CheckpointInUse):
                        self.deletion.unpublish(job.id)
        if (keep_s := self.periods.jobs_s) is not None:
            for job in self._not_needed(tuple(self._ended(now - keep_s))):
                with suppress(JobNotFound):
                    self.deletion.forget(job.id)

    def _with_checkpoint(self) -> Iterator[Job]:
        for name in self.checkpoints.names():
            if job_id := VariantName.of_checkpoint(name).job:
                with suppress(JobNotFound):
                    yield self.jobs.get(job_id)

    def _ended(self, before: float) -> Iterator[Job]:
        for status in JobStatus:
            for job_id in self.jobs.ids(status) if status.is_final else ():
                if created_at(job_id) > before:
                    break  # as all that follow: the ids are in order of creation
                with suppress(JobNotFound):
                    job = self.jobs.get(job_id)
                    if _ended_before(job, before):
                        yield job

    def _not_needed(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Those of the jobs whose record may go."""
        if jobs:
            self.checkpoints.refresh()  # knows what was sent by the time these were read
        return (job for job in jobs if not self._is_needed(job))

    def _is_needed(self, job: Job) -> bool:
        """Whether the record is needed to send the checkpoint, or to know when it expires."""
        upload = job.sinks.get(Sink.STORE)
        if upload is not None and not upload.is_sent:
            return True
        return self.periods.checkpoints_s is not None and self.deletion.has_published(job)


def _ended_before(job: Job, time_s: float) -> bool:
    """``time_s`` in seconds since the epoch."""
    return job.finished_at is not None and job.finished_at <= time_s
