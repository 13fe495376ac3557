"""Metrics of pruning jobs, read from the job store at every scrape.

Workers export their own: ``pruning/worker/metrics.py``.
"""

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.metrics.metrics import gauge
from pruning.jobs.job import Job
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.stats import JobStats


class JobCollector(Collector):
    """Scrapes succeed without the job store, with ``sleb_job_store_up`` 0."""

    def __init__(self, read: Callable[[], JobStats]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        try:
            stats = self._read()
        except JobStoreUnavailable:
            yield _store_up(is_up=False)
            return
        yield _store_up(is_up=True)
        counts = (([state.value], count) for state, count in stats.num_jobs.items())
        yield gauge("sleb_prune_jobs", "Pruning jobs by state.", ["state"], counts)
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
    jobs = [((job.model, job.id), job) for job in stats.active_jobs]
    for name, text, of in _OF_JOB:
        yield gauge(name, text, _LABELS, ((labels, of(job)) for labels, job in jobs))
    steps = [
        ((*labels, step.training), step)
        for labels, job in jobs
        if (step := job.heal_progress) is not None
    ]
    yield gauge(
        "sleb_heal_loss",
        "Divergence from the dense model at the last step of its healing, in nats per token.",
        (*_LABELS, "training"),
        ((labels, step.loss) for labels, step in steps),
    )
    yield gauge(
        "sleb_heal_tokens_per_second",
        "Tokens that its healing trains on per second.",
        (*_LABELS, "training"),
        ((labels, step.tokens_per_s) for labels, step in steps),
    )
    yield gauge(  # one series a round, so at most as many as the model has blocks
        "sleb_prune_job_loss",
        "Nats per predicted token after so many removals.",
        (*_LABELS, "num_removed"),
        (
            ((*labels, str(num_removed)), loss)
            for labels, job in jobs
            if job.dense_loss is not None
            for num_removed, loss in enumerate((job.dense_loss, *job.losses))
        ),
    )


_LABELS = ("model_name", "job_id")
_OF_JOB: Sequence[tuple[str, str, Callable[[Job], float | None]]] = (
    (
        "sleb_prune_job_progress_ratio",
        "Candidate evaluations done, 0 to 1.",
        lambda job: job.progress.ratio,
    ),
    (
        "sleb_prune_job_repair_ratio",
        "Steps of its repair done, 0 to 1.",
        lambda job: job.repair_progress.ratio if job.repair_progress else None,
    ),
    (
        "sleb_prune_job_workers_lost",
        "Workers that died with it at one point.",
        lambda job: job.num_lost,
    ),
    (
        "sleb_prune_job_estimated_finish_timestamp_seconds",
        "When its search, repair or healing would end at its pace so far, since the epoch.",
        lambda job: job.estimated_finish,
    ),
)
