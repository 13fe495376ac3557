"""The end of an ended job: its published checkpoint, its record, and all that is kept beside it."""

from contextlib import suppress

import redis

from pruning.checkpoints.staging import remove, thwart
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointNotFound, CheckpointStore
from pruning.jobs.job import IllegalTransition, Job, JobStatus
from pruning.jobs.keys import INDEX, OF_ONE_JOB, OUTBOX, STATUS_INDEX
from pruning.jobs.redis import redis_errors_translated
from pruning.jobs.store import JobStore

_FINALS = tuple(status for status in JobStatus if status.is_final)

# KEYS the outbox, and what is kept of the job, its webhook messages first. ARGV its id and the
# indexes that may list it.
# The status is not asked for again: an ended job stays ended.
_SCRIPT = """
for _, message in ipairs(redis.call('HKEYS', KEYS[2])) do redis.call('ZREM', KEYS[1], message) end
for at = 2, #KEYS do redis.call('DEL', KEYS[at]) end
for at = 2, #ARGV do redis.call('ZREM', ARGV[at], ARGV[1]) end
"""


class JobDeletion:
    """Deletes ended jobs, or one side of them alone: what they have published, or their record.

    Every method may raise ``JobStoreUnavailable``; those that take an id, ``JobNotFound``, and
    ``IllegalTransition`` if the job has not ended. What dies in between is finished by asking
    again.
    """

    def __init__(self, client: redis.Redis, jobs: JobStore, checkpoints: CheckpointStore) -> None:
        self._script = client.register_script(_SCRIPT)
        self._jobs = jobs
        self._checkpoints = checkpoints

    def delete(self, job_id: str) -> None:
        """Both, and so that no worker that has lost the job can bring anything of it back."""
        job = self._ended(job_id)
        self._unpublish(job)
        self._forget(job)
        self._unpublish(job)  # a worker may have had leave to publish before, and done it since

    def unpublish(self, job_id: str) -> None:
        """Only the checkpoint. The record can still say which blocks went."""
        self._unpublish(self._ended(job_id))

    def forget(self, job_id: str) -> None:
        """Only the record. The checkpoint stays for ever, as if no job had made it."""
        self._forget(self._ended(job_id))

    def has_published(self, job: Job) -> bool:
        """Whether what lies under the job's name is its checkpoint, and not somebody else's."""
        try:
            manifest = self._checkpoints.manifest(job.checkpoint_name)
        except CheckpointNotFound:
            return False
        except CheckpointCorrupt:
            return True
        return manifest.spec_digest == job.spec.digest()

    def _ended(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if not job.status.is_final:
            raise IllegalTransition(job_id, job.status, "delete")
        return job

    def _unpublish(self, job: Job) -> None:
        path = self._checkpoints.path(job.checkpoint_name)
        thwart(path)
        if self.has_published(job):
            with suppress(FileNotFoundError):  # somebody else was faster
                remove(path)

    def _forget(self, job: Job) -> None:
        keys = [OUTBOX, *(key.format(id=job.id) for key in OF_ONE_JOB)]
        indexes = [STATUS_INDEX.format(status=status) for status in _FINALS]
        with redis_errors_translated():
            self._script(keys=keys, args=[job.id, INDEX, *indexes])
