"""The end of an ended job: its published checkpoint, its record, and all that is kept beside it."""

import shutil
from pathlib import Path
from uuid import uuid4

import redis

from pruning.checkpoints import STAGING, CheckpointStore
from pruning.job import IllegalTransition, JobStatus
from pruning.jobs import INDEX, OF_ONE_JOB, STATUS_INDEX, JobStore, reaching_redis

_FINALS = tuple(status for status in JobStatus if status.is_final)

# KEYS what is kept of the job, its record first. ARGV its id and the indexes that may list it.
# The status is not asked for again: an ended job stays ended.
_SCRIPT = """
redis.call('DEL', unpack(KEYS))
for at = 2, #ARGV do redis.call('ZREM', ARGV[at], ARGV[1]) end
"""


class JobDeletion:
    """Deletes jobs with what they have published."""

    def __init__(self, client: redis.Redis, jobs: JobStore, checkpoints: CheckpointStore) -> None:
        self._script = client.register_script(_SCRIPT)
        self._jobs = jobs
        self._checkpoints = checkpoints

    def delete(self, job_id: str) -> None:
        """Make the checkpoint invisible, forget the job, then free the disk.

        What dies in between is finished by asking again, but for files that nobody sees any more:
        those lie in the staging folder. Raises ``JobNotFound``, ``IllegalTransition`` if the job
        has not ended, or ``JobStoreUnavailable``.
        """
        job = self._jobs.get(job_id)
        if job.status not in _FINALS:
            raise IllegalTransition(job_id, job.status, "delete")
        hidden = _hide(self._checkpoints.path(job.checkpoint_name))
        keys = [key.format(id=job_id) for key in OF_ONE_JOB]
        indexes = [STATUS_INDEX.format(status=status) for status in _FINALS]
        with reaching_redis():
            self._script(keys=keys, args=[job_id, INDEX, *indexes])
        if hidden is not None:
            shutil.rmtree(hidden, ignore_errors=True)


def _hide(checkpoint: Path) -> Path | None:
    """Move it to where nobody looks for checkpoints, all of it at once."""
    staging = checkpoint.parent / STAGING
    hidden = staging / f"{checkpoint.name}-{uuid4().hex}"
    try:
        checkpoint.stat()
        staging.mkdir(exist_ok=True)
        return checkpoint.rename(hidden)
    except FileNotFoundError:
        return None
