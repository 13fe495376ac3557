"""A job as a run of MLflow: its spec, the curves of its model, pictures, and where the model is."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.checkpoints.trajectory_plot import PLOT_FILE
from pruning.evaluation.quality import Interval
from pruning.extras import require_extra
from pruning.jobs.job import Job
from pruning.worker.sinks import Delivered, NotHere

_Item = TypeVar("_Item")
TAG = "sleb.job"
SpeedupOf = Callable[[Manifest], Interval | None]
_KEY = re.compile(r"[^\w./ -]", re.ASCII)
_MAX_METRICS = 1000  # of a request
_MAX_PARAMS = 100
_MAX_TEXT = 6000  # characters of a parameter


class MlflowRuns:
    """Records each job once. A run that a dead worker has begun is deleted and made again."""

    def __init__(
        self,
        uri: str,
        experiment: str,
        checkpoints: CheckpointStore,
        place_of: Callable[[str], str],
        speedup_of: SpeedupOf,
    ) -> None:
        """``place_of`` is the URI of a checkpoint by its name. Raises ``ExtraMissing``."""
        require_extra("mlflow", "SLEB_MLFLOW_URI")
        from mlflow import MlflowClient  # noqa: PLC0415 - an extra

        self._client: MlflowClient = MlflowClient(tracking_uri=uri)
        self._uri = uri.rstrip("/")
        self._experiment = experiment
        self._checkpoints = checkpoints
        self._place_of = place_of
        self._speedup_of = speedup_of

    def send(self, job: Job, confirm: Callable[[], object]) -> Delivered:
        name = job.pruned_model
        if name is None or not self._checkpoints.holds(name):
            raise NotHere
        manifest = self._checkpoints.manifest(name)
        experiment = self._experiment_id()
        for run in self._runs(experiment, job):
            if run.info.status == "FINISHED":
                return self._delivered(experiment, run.info.run_id)
            self._client.delete_run(run.info.run_id)
        confirm()
        tags = {TAG: job.id, "mlflow.runName": name, "sleb.checkpoint": self._place_of(name)}
        run = self._client.create_run(experiment, start_time=_ms(job.started_at), tags=tags)
        run_id = run.info.run_id
        self._log(run_id, job, manifest)
        picture = self._checkpoints.path(name) / PLOT_FILE
        if picture.is_file():
            self._client.log_artifact(run_id, str(picture))
        self._client.set_terminated(run_id, "FINISHED", end_time=_ms(job.finished_at))
        return self._delivered(experiment, run_id)

    def withdraw(self, job: Job) -> None:
        """A record stays when its job is deleted."""

    def _log(self, run_id: str, job: Job, manifest: Manifest) -> None:
        from mlflow.entities import Metric, Param  # noqa: PLC0415 - an extra

        at = int(manifest.created_at * 1000)
        metrics = [
            Metric(_KEY.sub("_", key), value, at, step)
            for step, key, value in curves(manifest, self._speedup_of(manifest))
        ]
        params = [Param(key, value[:_MAX_TEXT]) for key, value in parameters(job.spec.to_dict())]
        for some in _in_parts(params, _MAX_PARAMS):
            self._client.log_batch(run_id, params=some)
        for some_metrics in _in_parts(metrics, _MAX_METRICS):
            self._client.log_batch(run_id, metrics=some_metrics)

    def _experiment_id(self) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment)
        if experiment is not None:
            return str(experiment.experiment_id)
        return str(self._client.create_experiment(self._experiment))

    def _runs(self, experiment: str, job: Job) -> list[Any]:
        return list(self._client.search_runs([experiment], f"tags.`{TAG}` = '{job.id}'"))

    def _delivered(self, experiment: str, run_id: str) -> Delivered:
        url = f"{self._uri}/#/experiments/{experiment}/runs/{run_id}"
        return Delivered(url, f"recorded in MLflow as run {run_id}")


def parameters(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each setting that has a value, by its dotted name."""
    for name, value in spec.items():
        if isinstance(value, Mapping):
            yield from parameters(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", str(value)


def curves(manifest: Manifest, measured: Interval | None) -> Iterator[tuple[int, str, float]]:
    """The number of removed blocks, a name and its value there: qualities and speed-ups."""
    quality, depth = manifest.quality, len(manifest.removed_blocks)
    for step, loss in enumerate(quality.losses):
        yield step, "calibration_loss", loss
    for step, perplexity in enumerate(quality.perplexities):
        yield step, "calibration_perplexity", perplexity
    for domain in quality.domains:
        yield 0, f"perplexity/{domain.domain}", domain.dense.perplexity
        for step in range(1, depth + 1):
            served = domain.served_after(step)
            yield step, f"perplexity/{domain.domain}", served.perplexity
            yield from _interval(step, "ratio", domain.ratio(served), domain.domain)
    for step in range(1, depth + 1):
        if (predicted := manifest.predicted_speedup(step)) is not None:
            yield step, "speedup/predicted", predicted
    if measured is not None:
        yield from _interval(depth, "speedup", measured, "measured")


def _interval(
    step: int, name: str, interval: Interval, of: str
) -> Iterator[tuple[int, str, float]]:
    ends = {"": interval.value, "_low": interval.low, "_high": interval.high}
    for suffix, value in ends.items():
        if value is not None:
            yield step, f"{name}{suffix}/{of}", value


def _in_parts(items: Sequence[_Item], size: int) -> Iterator[Sequence[_Item]]:
    return (items[at : at + size] for at in range(0, len(items), size))


def _ms(time_s: float | None) -> int | None:
    return None if time_s is None else int(time_s * 1000)
