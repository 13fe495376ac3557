"""Entry points of the two processes of a worker: the parent, and its child for each job."""

import os
import signal
import sys

from rq.executions import Execution
from rq.serializers import JSONSerializer

from pruning.config import WorkerSettings, child_environment, share_cpus
from pruning.jobs.outbox import SinkOutbox
from pruning.jobs.queue import LEASE_S
from pruning.jobs.redis import connect
from pruning.jobs.workers import new_worker_name
from pruning.logs import set_up_logging
from pruning.process import end_with_parent
from pruning.scraping import metrics_served
from pruning.worker.parent import PruneWorker
from pruning.worker.senders import senders_of
from pruning.worker.sinks import sending
from pruning.worker.tracking import SpeedupOf

# A job gets what a service on the same CPUs leaves. Alone, it gets everything.
_NICENESS = 19


class WorkerEnded(RuntimeError):
    """The worker stopped without a signal."""


def run_worker(
    settings: WorkerSettings,
    redis_url: str,
    *,
    lease_s: int = LEASE_S,
    worker_class: type[PruneWorker] = PruneWorker,
    speedup_of: SpeedupOf = lambda _manifest: None,
) -> None:
    """Run jobs one after the other until SIGTERM or SIGINT. Must run in the main thread.

    Either signal ends the worker within seconds, and its job is requeued. Raises ``WorkerEnded`` if
    the worker stops for any other reason, and ``MetricsPortUnavailable``.
    """
    set_up_logging(settings.log_level, settings.log_format)
    share_cpus()
    client = connect(redis_url)
    worker = worker_class(new_worker_name(), client, lease_s=lease_s)
    worker.environment = child_environment(settings, redis_url)
    worker.cancel_s = settings.cancel_s
    worker.log.addFilter(worker.is_news)
    outbox = SinkOutbox(connect(redis_url, num_retries=0))
    try:
        with (
            metrics_served(
                worker.metrics.registry,
                str(settings.host),
                settings.worker_metrics_port,
                "SLEB_WORKER_METRICS_PORT",
            ),
            sending(senders_of(settings, speedup_of), outbox, worker.metrics.sent),
        ):
            # at info, RQ logs a line at every maintenance
            worker.work(logging_level="DEBUG" if settings.log_level == "debug" else "WARNING")
    finally:
        worker.log.removeFilter(worker.is_news)
        client.close()
    if not worker.is_stopping:
        raise WorkerEnded("the worker stopped unexpectedly: see its log")


def run_child(worker_class: type[PruneWorker] = PruneWorker) -> None:
    """Run the delivery given on the command line, in a process that ends with its parent."""
    name, job_id, execution_id, parent, lease_s = sys.argv[1:]
    end_with_parent(int(parent), signal.SIGKILL)  # on Linux; elsewhere the lease expires
    os.nice(_NICENESS)
    settings = WorkerSettings()
    set_up_logging(settings.log_level, settings.log_format, lambda: {"job_id": job_id})
    share_cpus()
    assert settings.redis_url is not None  # set by the parent
    client = connect(settings.redis_url)
    worker = worker_class(name, client, lease_s=int(lease_s), is_child=True)
    delivery = worker.job_class.fetch(job_id, client, JSONSerializer)
    execution = Execution.fetch(execution_id, job_id, connection=client)
    execution._job = delivery
    worker.execution = execution
    worker.main_work_horse(delivery, worker.queues[0])
