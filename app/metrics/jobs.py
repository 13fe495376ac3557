"""Metrics of pruning jobs, read from the job store at every scrape.

Workers export their own: ``pruning/worker/metrics.py``.
"""

from collections.abc import Callable, Iterable

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.stats import JobStats


class JobCollector(Collector):
    """Scrapes succeed without the job store, with ``sleb_job_store_up`` 0."""

    def __init__(self, read: Callable[[], JobStats]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        return ()  # else registering reads the store

    def collect(self) -> Iterable[Metric]:
        try:
            stats = self._read()
        except JobStoreUnavailable:
            yield _store_up(is_up=False)
            return
        yield _store_up(is_up=True)
        jobs = GaugeMetricFamily("sleb_prune_jobs", "Pruning jobs by state.", labels=["state"])
        for state, count in stats.num_jobs.items():
            jobs.add_metric([state.value], count)
        yield jobs
        yield GaugeMetricFamily(
            "sleb_prune_queue_age_seconds",
            "How long the first of the queued jobs has been waiting; 0 without any.",
            value=stats.queue_age_s,
        )
        yield GaugeMetricFamily(
            "sleb_prune_workers", "Workers that are alive.", value=stats.num_workers
        )
        yield from _at_work(stats)


def _store_up(*, is_up: bool) -> Metric:
    return GaugeMetricFamily("sleb_job_store_up", "1 if the job store answers.", value=is_up)


def _at_work(stats: JobStats) -> Iterable[Metric]:
    """Only jobs that a worker has, so that series are as few as workers."""
    labels = ["model_name", "job_id"]
    ratio = GaugeMetricFamily(
        "sleb_prune_job_progress_ratio", "Candidate evaluations done, 0 to 1.", labels=labels
    )
    repaired = GaugeMetricFamily(
        "sleb_prune_job_repair_ratio", "Steps of its repair done, 0 to 1.", labels=labels
    )
    healed = GaugeMetricFamily(
        "sleb_heal_loss",
        "Divergence from the dense model at the last step of its healing, in nats per token.",
        labels=[*labels, "training"],
    )
    pace = GaugeMetricFamily(
        "sleb_heal_tokens_per_second",
        "Tokens that its healing trains on per second.",
        labels=[*labels, "training"],
    )
    lost = GaugeMetricFamily(
        "sleb_prune_job_workers_lost", "Workers that died with it at one point.", labels=labels
    )
    finish = GaugeMetricFamily(
        "sleb_prune_job_estimated_finish_timestamp_seconds",
        "When its search, repair or healing would end at its pace so far, since the epoch.",
        labels=labels,
    )
    for job in stats.active_jobs:
        ratio.add_metric([job.model, job.id], job.progress.ratio)
        if job.repair_progress is not None:
            repaired.add_metric([job.model, job.id], job.repair_progress.ratio)
        if (progress := job.heal_progress) is not None:
            healed.add_metric([job.model, job.id, progress.training], progress.loss)
            pace.add_metric([job.model, job.id, progress.training], progress.tokens_per_s)
        lost.add_metric([job.model, job.id], job.num_lost)
        if job.estimated_finish is not None:
            finish.add_metric([job.model, job.id], job.estimated_finish)
    yield from (ratio, repaired, healed, pace, lost, finish, _losses(stats))


def _losses(stats: JobStats) -> Metric:
    """One series a round, so at most as many as the model has blocks."""
    losses = GaugeMetricFamily(
        "sleb_prune_job_loss",
        "Nats per predicted token after so many removals.",
        labels=["model_name", "job_id", "num_removed"],
    )
    for job in stats.active_jobs:
        found = () if job.dense_loss is None else (job.dense_loss, *job.losses)
        for num_removed, loss in enumerate(found):
            losses.add_metric([job.model, job.id, str(num_removed)], loss)
    return losses
