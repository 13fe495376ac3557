"""How long ended jobs and their checkpoints are kept, and what sweeps away the rest.

A sweep does what a client could do by DELETE. One that dies is finished by the next, and several
at once do no harm.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pruning.checkpoints.staging import sweep
from pruning.checkpoints.store import CheckpointStore
from pruning.jobs.deletion import JobDeletion
from pruning.jobs.job import Job, JobNotFound, JobStatus
from pruning.jobs.store import JobStore
from pruning.models.names import VariantName


@dataclass(frozen=True)
class Keep:
    """Seconds after the end of a job; None is for ever."""

    jobs_s: float | None = None  # records and events
    checkpoints_s: float | None = None


class Retention:
    """Removes leftovers of dead processes, then the checkpoints and records that are due.

    A checkpoint that no record claims is not touched: ``sleb prune`` makes such ones.
    """

    def __init__(
        self, keep: Keep, checkpoints_dir: Path, jobs: JobStore, deletion: JobDeletion
    ) -> None:
        self._keep = keep
        self._directory = checkpoints_dir
        self._jobs = jobs
        self._deletion = deletion

    def sweep(self) -> None:
        """May raise ``JobStoreUnavailable``."""
        sweep(self._directory)
        now = time.time()
        if (keep_s := self._keep.checkpoints_s) is not None:
            for job in self._with_checkpoint():
                if _ended_before(job, now - keep_s):
                    with suppress(JobNotFound):  # somebody has just deleted it
                        self._deletion.unpublish(job.id)
        if (keep_s := self._keep.jobs_s) is not None:
            for job in self._ended(now - keep_s):
                if not self._is_needed(job):
                    with suppress(JobNotFound):
                        self._deletion.forget(job.id)

    def _with_checkpoint(self) -> Iterator[Job]:
        for name in CheckpointStore(self._directory).names():
            if job_id := VariantName.of_checkpoint(name).job:
                with suppress(JobNotFound):
                    yield self._jobs.get(job_id)

    def _ended(self, before: float) -> Iterator[Job]:
        for status in JobStatus:
            for job_id in self._jobs.ids(status) if status.is_final else ():
                with suppress(JobNotFound):
                    job = self._jobs.get(job_id)
                    if job.created_at > before:
                        break  # as were all behind it
                    if _ended_before(job, before):
                        yield job

    def _is_needed(self, job: Job) -> bool:
        """Without its record, nobody would know when its checkpoint is due."""
        return self._keep.checkpoints_s is not None and self._deletion.has_published(job)


def _ended_before(job: Job, time_s: float) -> bool:
    """``time_s`` in seconds since the epoch."""
    return job.finished_at is not None and job.finished_at <= time_s
