"""Deletion of ended jobs: the published checkpoint, the record, and all other keys of the job."""

from collections.abc import Callable, Sequence
from typing import Any

import redis

from pruning.checkpoints.same_search import is_of_search
from pruning.checkpoints.staging import discard_staged
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointNotFound, CheckpointStore
from pruning.healing.places import healed_beside
from pruning.jobs.job import IllegalTransition, Job, JobStatus, Sink
from pruning.jobs.keys import INDEX, KEYS_OF_A_JOB, OUTBOX, SINK, STATUS_INDEX
from pruning.jobs.outbox import SinkOutbox
from pruning.jobs.record import BROKEN
from pruning.jobs.redis import redis_errors_translated
from pruning.jobs.script import status_of
from pruning.jobs.store import JobStore
from pruning.models.names import healed_name

_FINALS = tuple(status for status in JobStatus if status.is_final)
_OTHERS = tuple(status for status in JobStatus if not status.is_final)

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


class JobDeletion:
    """Deletes ended jobs, or only their checkpoint, or only their record.

    Every method may raise ``JobStoreUnavailable``; methods that take an id raise ``JobNotFound``,
    and ``IllegalTransition`` if the job has not ended. Where checkpoints are in an object store as
    well, ``StoreError`` may be raised before anything is deleted here. An interrupted deletion can
    be repeated.
    A checkpoint for which ``aliases_of`` returns names, or raises ``ValueError``, is kept, by
    raising ``CheckpointInUse``.
    """

    def __init__(
        self,
        client: redis.Redis,
        jobs: JobStore,
        checkpoints: CheckpointStore,
        aliases_of: Callable[[str], Sequence[str]] = lambda _checkpoint: (),
    ) -> None:
        self._script = client.register_script(_DELETE)
        self._sinks = SinkOutbox(client)
        self._jobs = jobs
        self._checkpoints = checkpoints
        self._aliases_of = aliases_of

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
        for name in self._sinks.withdrawn(Sink.STORE):
            for each in (healed_name(name), name):
                self._checkpoints.delete(each)

    def has_published(self, job: Job) -> bool:
        """Whether a checkpoint of this job's names exists and was published by it."""
        return self._has_pruned(job) or self._has_healed(healed_name(job.checkpoint_name))

    def _has_healed(self, name: str) -> bool:
        try:
            return self._checkpoints.manifest(name).healing is not None
        except CheckpointNotFound:
            return False
        except CheckpointCorrupt:
            return True

    def _has_pruned(self, job: Job) -> bool:
        try:
            manifest = self._checkpoints.manifest(job.checkpoint_name)
        except CheckpointNotFound:
            return False
        except CheckpointCorrupt:
            return True
        return is_of_search(manifest, job.spec)

    def _ended(self, job_id: str) -> Job:
        job = self._jobs.get(job_id)
        if not job.status.is_final:
            raise IllegalTransition(job_id, job.status, "delete")
        return job

    def _unpublish(self, job: Job) -> None:
        try:
            aliases = self._aliases_of(job.checkpoint_name)
        except ValueError as error:  # they cannot be read
            raise CheckpointInUse(f"{job.checkpoint_name!r} may have an alias: {error}") from error
        if aliases:
            raise CheckpointInUse(
                f"{job.checkpoint_name!r} has the alias {', '.join(aliases)}: give it another "
                f"target or remove it first"
            )
        self._sinks.withdraw(Sink.STORE, job)
        self._checkpoints.refresh()
        places = healed_beside(self._checkpoints.path(job.checkpoint_name))
        for path, is_ours in (
            (places.target, self._has_healed(places.target.name)),
            (places.source, self._has_pruned(job)),
        ):
            discard_staged(path)
            if is_ours:
                self._checkpoints.delete(path.name)
        places.discard_state()

    def _forget(self, job: Job) -> None:
        keys = [OUTBOX, *(key.format(id=job.id) for key in KEYS_OF_A_JOB)]
        ended = [STATUS_INDEX.format(status=status) for status in _FINALS]
        ended += [SINK.format(sink=sink) for sink in Sink]
        others = [INDEX, *(STATUS_INDEX.format(status=status) for status in _OTHERS)]
        is_broken = job.error is not None and job.error.code == BROKEN  # whatever its status says
        num_ended = 0 if is_broken else len(ended)
        with redis_errors_translated():
            status: Any = self._script(keys=keys, args=[job.id, num_ended, *ended, *others])
        if status is not None:
            raise IllegalTransition(job.id, status_of(status), "delete")
