"""The metrics of a worker, by name, and the port that shows them. Knows no Redis.

Every job runs in a child process of its own, so the parent counts, from what the child has written
into the job's record: it looks whenever it renews the lease, and once more when the child has
ended. So nothing is lost with a child, no counter lives in Redis, where a restart could set it
back, and a scrape waits for nobody.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, start_http_server

from pruning.jobs.job import Job, JobStatus, Pace
from pruning.worker.gpu import GpuMemoryCollector


class MetricsPortUnavailable(RuntimeError):
    """The port for the metrics cannot be listened on."""


class WorkerMetrics:
    """Of the worker of that name, which counts as up for ``lease_s`` after every heartbeat."""

    def __init__(self, worker: str, lease_s: float) -> None:
        self.registry = registry = CollectorRegistry()
        self._worker = worker
        self._last_beat_s = time.monotonic() - lease_s
        self._attempt = ("", 0)  # of whose pace this much is counted
        self._counted = Pace()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self._evaluations = counter("sleb_prune_evaluations", "Candidate evaluations done.")
        self._evaluation_s = Summary(
            "sleb_prune_evaluation_seconds", "Time of a candidate evaluation.", registry=registry
        )
        self._ended = counter("sleb_prune_jobs_ended", "Jobs that ended here, by state.", "state")
        for status in JobStatus:
            if status.is_final:
                self._ended.labels(status.value)  # a rate needs the 0 in front of the first
        self._children_lost = counter(
            "sleb_prune_children_lost", "Children that died with their job."
        )
        self._leases_lost = counter(
            "sleb_prune_leases_lost", "Jobs that this worker lost to another while they ran."
        )
        self._leases_expired = counter(
            "sleb_prune_leases_expired", "Jobs whose worker was gone, as this one found."
        )
        self._busy = Gauge("sleb_worker_busy", "1 while it has a job.", registry=registry)
        up = Gauge("sleb_worker_up", "1 while it reaches the job store.", registry=registry)
        up.set_function(lambda: time.monotonic() - self._last_beat_s < lease_s)
        registry.register(GpuMemoryCollector())

    @contextmanager
    def served(self, host: str, port: int) -> Iterator[None]:
        """On ``/metrics`` of that port meanwhile, or nowhere if it is 0.

        Raises ``MetricsPortUnavailable``.
        """
        if port == 0:
            yield
            return
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise MetricsPortUnavailable(
                f"the worker cannot show its metrics on port {port} of {host} ({error}): set "
                "SLEB_WORKER_METRICS_PORT to another port, or to 0 for none"
            ) from error
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def heartbeat(self) -> None:
        """The worker has reached the job store."""
        self._last_beat_s = time.monotonic()

    @contextmanager
    def busy(self) -> Iterator[None]:
        self._busy.set(1)
        try:
            yield
        finally:
            self._busy.set(0)

    def looked_at(self, job: Job) -> None:
        """Count what is new in a record; that of a job which another worker has is not ours."""
        if job.worker != self._worker:
            return
        attempt, pace = (job.id, job.attempt), job.pace
        goes_on = attempt == self._attempt and pace.num_evaluations >= self._counted.num_evaluations
        before = self._counted if goes_on else Pace()
        self._attempt, self._counted = attempt, pace
        if num_new := pace.num_evaluations - before.num_evaluations:
            self._evaluations.inc(num_new, {"job_id": job.id})
            each_s = max(0.0, pace.seconds - before.seconds) / num_new
            for _ in range(num_new):
                self._evaluation_s.observe(each_s)

    def ended(self, status: JobStatus) -> None:
        self._ended.labels(status.value).inc()

    def child_lost(self) -> None:
        self._children_lost.inc()

    def lease_lost(self) -> None:
        self._leases_lost.inc()

    def lease_expired(self) -> None:
        self._leases_expired.inc()
