"""The sinks that the settings of a worker name, and what sends to them."""

from collections.abc import Callable

from pruning.checkpoints.store import CheckpointStore
from pruning.config import WorkerSettings
from pruning.jobs.job import Job, Sink
from pruning.models.names import healed_name
from pruning.plural import counted
from pruning.storage.location import open_store
from pruning.storage.store import ObjectStore
from pruning.storage.transfer import send
from pruning.store_url import StoreUrl
from pruning.worker.sinks import Delivered, NotHere, Sender
from pruning.worker.tracking import MlflowRuns, SpeedupOf


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
        num_files = sum(one.num_files for one in sent)
        num_bytes = sum(one.num_bytes for one in sent)
        url = f"{self._store.url}/{job.pruned_model}"
        return Delivered(url, f"uploaded to {url}: {counted(num_files, 'file')}, {num_bytes} bytes")

    def withdraw(self, job: Job) -> None:
        for name in _names(job):
            self._store.delete(name)


def _names(job: Job) -> tuple[str, ...]:
    """Of all checkpoints that the job may have published."""
    return (job.checkpoint_name, healed_name(job.checkpoint_name))


def sinks_of(settings: WorkerSettings) -> tuple[Sink, ...]:
    """Where the results of jobs are sent."""
    urls = {Sink.STORE: settings.checkpoint_store, Sink.MLFLOW: settings.mlflow_uri}
    return tuple(sink for sink, url in urls.items() if url is not None)


def senders_of(
    settings: WorkerSettings, speedup_of: SpeedupOf = lambda _manifest: None
) -> dict[Sink, Sender]:
    """What sends to each of ``sinks_of``. ``speedup_of`` is what was measured of a checkpoint.

    Raises ``StoreExtraMissing`` or ``ExtraMissing``.
    """
    senders: dict[Sink, Sender] = {}
    checkpoints = CheckpointStore(settings.checkpoints_dir)
    if settings.checkpoint_store is not None:
        store = open_store(StoreUrl.parse(settings.checkpoint_store))
        senders[Sink.STORE] = CheckpointUpload(store, checkpoints)
    if settings.mlflow_uri is not None:
        root = settings.checkpoint_store or f"file://{settings.checkpoints_dir}"
        senders[Sink.MLFLOW] = MlflowRuns(
            settings.mlflow_uri,
            settings.mlflow_experiment,
            checkpoints,
            lambda name: f"{root}/{name}",
            speedup_of,
        )
    return senders
