"""The checkpoints of a job to the object store."""

from collections.abc import Callable

from pruning.checkpoints.store import CheckpointStore
from pruning.config import WorkerSettings
from pruning.jobs.job import Job, Sink
from pruning.models.names import healed_name
from pruning.storage.location import open_store
from pruning.storage.store import ObjectStore
from pruning.storage.transfer import send
from pruning.store_url import StoreUrl
from pruning.worker.sinks import Delivered, NotHere, Sender


class CheckpointUpload:
    """Sends the pruned checkpoint of a job, and the healed one."""

    def __init__(self, store: ObjectStore, checkpoints: CheckpointStore) -> None:
        self._store = store
        self._checkpoints = checkpoints

    def send(self, job: Job, confirm: Callable[[], object]) -> Delivered:
        names = [name for name in _names(job) if self._checkpoints.holds(name)]
        if job.pruned_model not in names:
            raise NotHere
        sent = [send(self._store, self._checkpoints.path(name), name, confirm) for name in names]
        num_files, num_bytes = (
            sum(one.num_files for one in sent),
            sum(one.num_bytes for one in sent),
        )
        url = f"{self._store.url}/{job.pruned_model}"
        return Delivered(url, f"uploaded to {url}: {num_files} files, {num_bytes} bytes")

    def withdraw(self, job: Job) -> None:
        for name in _names(job):
            self._store.delete(name)


def _names(job: Job) -> tuple[str, ...]:
    """Of all checkpoints that the job may have published."""
    return (job.checkpoint_name, healed_name(job.checkpoint_name))


def sinks_of(settings: WorkerSettings) -> tuple[Sink, ...]:
    """Where the results of jobs are sent."""
    return () if settings.checkpoint_store is None else (Sink.STORE,)


def senders_of(settings: WorkerSettings) -> dict[Sink, Sender]:
    """Raises ``StoreExtraMissing``."""
    if settings.checkpoint_store is None:
        return {}
    store = open_store(StoreUrl.parse(settings.checkpoint_store))
    return {Sink.STORE: CheckpointUpload(store, CheckpointStore(settings.checkpoints_dir))}
