"""Retention: ended jobs and their checkpoints are deleted after a period.

A sweep deletes what a client could delete by DELETE. It may be interrupted, and several may run at
once.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from pruning.checkpoints.staging import sweep
from pruning.checkpoints.store import CheckpointStore
from pruning.jobs.deletion import CheckpointInUse, JobDeletion
from pruning.jobs.job import Job, JobNotFound, JobStatus, Sink
from pruning.jobs.store import JobStore
from pruning.models.names import VariantName


@dataclass(frozen=True)
class RetentionPeriods:
    """Seconds from the end of a job to the deletion; None keeps forever."""

    jobs_s: float | None = None  # records and events
    checkpoints_s: float | None = None


class Retention:
    """Removes leftovers of dead processes, and expired checkpoints and records.

    A checkpoint without a job, such as one of ``sleb prune``, is never removed, and neither is one
    that an alias means.
    """

    def __init__(
        self,
        periods: RetentionPeriods,
        checkpoints: CheckpointStore,
        jobs: JobStore,
        deletion: JobDeletion,
    ) -> None:
        self._periods = periods
        self._checkpoints = checkpoints
        self._jobs = jobs
        self._deletion = deletion

    def sweep(self) -> None:
        """Remove all that has expired. May raise ``JobStoreUnavailable`` or ``StoreError``."""
        sweep(self._checkpoints.root)
        now = time.time()
        if (keep_s := self._periods.checkpoints_s) is not None:
            for job in self._with_checkpoint():
                if _ended_before(job, now - keep_s):
                    # deleted in between, or kept for an alias
                    with suppress(JobNotFound, CheckpointInUse):
                        self._deletion.unpublish(job.id)
        if (keep_s := self._periods.jobs_s) is not None:
            for job in self._not_needed(tuple(self._ended(now - keep_s))):
                with suppress(JobNotFound):
                    self._deletion.forget(job.id)
        self._deletion.finish()

    def _with_checkpoint(self) -> Iterator[Job]:
        for name in self._checkpoints.names():
            if job_id := VariantName.of_checkpoint(name).job:
                with suppress(JobNotFound):
                    yield self._jobs.get(job_id)

    def _ended(self, before: float) -> Iterator[Job]:
        for status in JobStatus:
            for job_id in self._jobs.ids(status) if status.is_final else ():
                with suppress(JobNotFound):
                    job = self._jobs.get(job_id)
                    if job.created_at > before:
                        break  # as all that follow: the ids are in order of creation
                    if _ended_before(job, before):
                        yield job

    def _not_needed(self, jobs: Sequence[Job]) -> Iterator[Job]:
        """Those of the jobs whose record may go."""
        if jobs:
            self._checkpoints.refresh()  # knows what was sent by the time these were read
        return (job for job in jobs if not self._is_needed(job))

    def _is_needed(self, job: Job) -> bool:
        """Whether the record is needed to send the checkpoint, or to know when it expires."""
        upload = job.sinks.get(Sink.STORE)
        if upload is not None and not upload.is_sent:
            return True
        return self._periods.checkpoints_s is not None and self._deletion.has_published(job)


def _ended_before(job: Job, time_s: float) -> bool:
    """``time_s`` in seconds since the epoch."""
    return job.finished_at is not None and job.finished_at <= time_s
