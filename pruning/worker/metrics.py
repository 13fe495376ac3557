"""The metrics of a worker, and the port that serves them.

Jobs run in child processes, so the parent counts, from the progress in the job's record. It reads
the record whenever it renews the lease, and once more when the child has ended. So a dead child
loses no counts, no counter lives in Redis, and a scrape never waits.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, start_http_server

from pruning.jobs.job import Job, JobStatus, Pace, Sink
from pruning.worker.gpu import GpuMemoryCollector

_RESULTS = {True: "sent", False: "failed"}


class MetricsPortUnavailable(RuntimeError):
    """The worker cannot listen on the port of its metrics."""


class WorkerMetrics:
    """The metrics of one worker, which is up for ``lease_s`` seconds after each heartbeat."""

    def __init__(self, worker: str, lease_s: float) -> None:
        self.registry = registry = CollectorRegistry()
        self._worker = worker
        self._last_beat_s = time.monotonic() - lease_s
        self._attempt = ("", 0)  # the job and attempt that ``_counted`` belongs to
        self._counted = Pace()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        self._evaluations = counter("sleb_prune_evaluations", "Candidate evaluations done.")
        self._evaluation_s = Summary(
            "sleb_prune_evaluation_seconds", "Time of a candidate evaluation.", registry=registry
        )
        self.ended = counter("sleb_prune_jobs_ended", "Jobs that ended here, by state.", "state")
        for status in JobStatus:
            if status.is_final:
                self.ended.labels(status.value)  # a rate needs a sample before the first event
        self.children_lost = counter(
            "sleb_prune_children_lost", "Children that died with their job."
        )
        self.leases_lost = counter(
            "sleb_prune_leases_lost", "Jobs that this worker lost to another while they ran."
        )
        self.leases_expired = counter(
            "sleb_prune_leases_expired", "Jobs whose worker was gone, as this one found."
        )
        self._sent = counter(
            "sleb_sink_attempts",
            "Attempts to send a result to a sink, by sink and result.",
            "sink",
            "result",
        )
        for sink in Sink:
            for result in _RESULTS.values():
                self._sent.labels(sink.value, result)
        self.busy = Gauge("sleb_worker_busy", "1 while it has a job.", registry=registry)
        up = Gauge("sleb_worker_up", "1 while it reaches the job store.", registry=registry)
        up.set_function(lambda: time.monotonic() - self._last_beat_s < lease_s)
        registry.register(GpuMemoryCollector())

    @contextmanager
    def served(self, host: str, port: int) -> Iterator[None]:
        """Serve ``/metrics`` on ``port``, unless it is 0. Raises ``MetricsPortUnavailable``."""
        if port == 0:
            yield
            return
        try:
            server, thread = start_http_server(port, host, self.registry)
        except OSError as error:
            raise MetricsPortUnavailable(
                f"cannot serve worker metrics on port {port} of {host} ({error}): set "
                "SLEB_WORKER_METRICS_PORT to another port, or to 0 to disable it"
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

    def record_progress(self, job: Job) -> None:
        """Count the evaluations since the last call. Ignores jobs of other workers."""
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

    def sent(self, sink: Sink, is_sent: bool) -> None:
        """Count an attempt to send the result of a job."""
        self._sent.labels(sink.value, _RESULTS[is_sent]).inc()
