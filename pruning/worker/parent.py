"""The parent process of a worker: takes jobs, runs each in a child process, and renews its lease.

The parent kills the child when the lease is lost, after which the job is delivered again, or when
the child does not stop in time after a cancel, a pause or a stop of the worker. A child never
outlives its parent. Only the child imports torch.
"""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from resource import struct_rusage
from types import FrameType, MappingProxyType
from typing import Any, ClassVar

import redis
from redis.client import Pipeline
from rq.exceptions import AbandonedJobError, StopRequested
from rq.executions import Execution
from rq.job import Job as RQJob
from rq.queue import Queue
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.worker import Worker, WorkerStatus

from pruning.jobs.job import Job, JobNotFound, JobStatus
from pruning.jobs.queue import (
    TASK,
    Delivery,
    DeliveryRefused,
    LeasedQueue,
    PruneQueue,
    Task,
    refuse,
    worker_lost,
)
from pruning.jobs.redis import (
    REFUSALS,
    UNAVAILABLE,
    JobStoreUnavailable,
    wrong_types_as_outages,
)
from pruning.jobs.store import JobStore
from pruning.worker.metrics import WorkerMetrics
from pruning.worker.task import run_job

_POLL_S = 0.1
_CHILD_STOP_S = 6.0  # for a child to end its evaluation; the worker itself has 10 s

logger = logging.getLogger(__name__)


class PruneDelivery(Delivery):
    """Runs ``run_job``, and nothing else."""

    tasks: ClassVar[Mapping[str, Task]] = MappingProxyType({TASK: run_job})


class PruneWorker(Worker):
    """RQ's worker, for jobs of hours with a lease of seconds.

    Does not use RQ's ``SpawnWorker``, which puts the password of Redis on a command line.
    """

    queue_class = LeasedQueue
    job_class = PruneDelivery
    child = "from pruning.worker.entrypoints import run_child; run_child()"

    def __init__(
        self, name: str, client: redis.Redis, *, lease_s: int, is_child: bool = False
    ) -> None:
        self._deliveries = PruneQueue(client, lease_s=lease_s)
        self._store = JobStore(client)
        self._lease_s = lease_s
        self.environment: dict[str, str] = {}  # of the children
        self.cancel_s = math.inf  # for a child to stop on request, before it is killed
        self._stop_requested_s: float | None = None  # when the parent saw the request
        self._is_overdue = False
        self._num_refused = 0  # writes, by Redis in its life
        self._renewable_since_s = -math.inf  # when this worker saw the last of them
        self.is_stopping = False
        self._kill_at_s = math.inf  # deadline of the child once the worker stops
        self.metrics = WorkerMetrics(name, lease_s)
        self._is_requeued = False  # the current job
        super().__init__(
            [self._deliveries.rq],
            name,
            connection=client,
            serializer=JSONSerializer,
            worker_ttl=15 + max(1, lease_s // 3),  # RQ waits for a job for all but 15 s of it
            maintenance_interval=max(1, lease_s * 2 // 3),
            job_monitoring_interval=max(1, lease_s // 3),
            exception_handlers=[self._on_abandoned],
            log_job_description=False,
            prepare_for_work=not is_child,
        )

    def is_news(self, record: logging.LogRecord) -> bool:
        """A filter of RQ's log, which calls every end of a child unexpected, also on Ctrl-C."""
        is_expected = self.is_stopping or self._is_overdue
        return not (is_expected and "terminated unexpectedly" in record.getMessage())

    def get_heartbeat_ttl(self, job: RQJob, working_time: float = 0.0) -> int:  # noqa: ARG002 - the signature is RQ's
        return self._lease_s

    def fork_work_horse(self, job: RQJob, queue: Queue) -> None:  # noqa: ARG002 - the signature is RQ's
        assert self.execution is not None
        who = (self.name, job.id, self.execution.id, str(os.getpid()), str(self._lease_s))
        command = [sys.executable, "-c", self.child, *who]
        # a process group of its own: Ctrl-C is for the parent
        self._horse_pid = os.posix_spawn(sys.executable, command, self.environment, setpgroup=0)
        if self.is_stopping:  # the signal came before the child existed
            self.kill_horse()

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        if self.horse_pid:  # group 0 would be our own
            super().kill_horse(sig)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is RQ's
        """Ask the child to stop, and requeue its job. A second signal exits at once."""
        if self.is_stopping:
            raise SystemExit(1)
        self.is_stopping = self._stop_requested = True
        self._terminate_child()
        if self.get_state() != WorkerStatus.BUSY:
            raise StopRequested

    def _terminate_child(self) -> None:
        self._kill_at_s = min(self._kill_at_s, time.monotonic() + _CHILD_STOP_S)
        if self.horse_pid:
            with suppress(ProcessLookupError):  # only the child, not its process group
                os.kill(self.horse_pid, signal.SIGTERM)

    def execute_job(self, job: RQJob, queue: Queue) -> None:
        if job.id in queue.started_job_registry:  # delivered twice, and leased already
            queue.intermediate_queue.remove(job.id)
            return
        try:
            _ = job.func
        except DeliveryRefused as refusal:
            refuse(job.id, refusal)
            queue.intermediate_queue.remove(job.id)
            self.connection.delete(job.key)  # a recorded job is then delivered by ``recover``
            return
        began, self._is_requeued = time.time(), False
        self._stop_requested_s, self._is_overdue = None, False
        with self.metrics.busy.track_inprogress():
            super().execute_job(job, queue)
        self._count_end(job.id, began)
        self._enqueue_again(job.id)

    def wait_for_horse(self) -> tuple[int | None, int | None, struct_rusage | None]:
        """Poll the child: a signal that another thread receives does not interrupt ``wait4``."""
        with suppress(ChildProcessError):
            while True:
                ended = os.wait4(self.horse_pid, os.WNOHANG)
                if ended[0]:
                    return ended
                if time.monotonic() >= self._kill_at_s:
                    self.kill_horse()
                threading.Event().wait(_POLL_S)
        return None, None, None

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        super().heartbeat(timeout, pipeline)
        if pipeline is None:  # else it is sent later
            self.metrics.heartbeat()

    def maintain_heartbeats(self, job: RQJob, execution: Execution) -> None:
        if self.is_stopping:  # RQ's alarm may have interrupted ``request_stop``
            self._terminate_child()
        try:
            super().maintain_heartbeats(job, execution)
            self.metrics.heartbeat()
            is_lost = not self._has_lease(job, execution)
            record = self._record_progress(job.id)
            self._enforce_stop_request(record)
            if is_lost and not _is_at_rest(record):
                self.log.error("killing the child of job %s: its lease was lost", job.id)
                self.kill_horse()
        except UNAVAILABLE as error:
            self.log.warning("no heartbeat for job %s: %s", job.id, error)

    def _enforce_stop_request(self, job: Job | None) -> None:
        """Kill a child that has not stopped within ``cancel_s`` of the request."""
        if job is None:
            return
        if job.stop_request is None:
            self._stop_requested_s = None
            return
        now_s = time.monotonic()
        self._stop_requested_s = now_s if self._stop_requested_s is None else self._stop_requested_s
        if now_s - self._stop_requested_s >= self.cancel_s:
            self.log.warning("killing the child of job %s: no %s in time", job.id, job.stop_request)
            self._is_overdue = True
            self.kill_horse()

    def _has_lease(self, job: RQJob, execution: Execution) -> bool:
        """Whether this execution still has the lease of the job."""
        key = job.started_job_registry.key
        return self.connection.zscore(key, execution.composite_key) is not None

    def handle_job_failure(
        self,
        job: RQJob,
        queue: Queue,
        started_job_registry: StartedJobRegistry | None = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        """Deliver again after the child died or raised, unless another worker has the job."""
        queue.intermediate_queue.remove(job.id)
        self._record_progress(job.id)  # before the record is reset
        if execution is not None and not self._has_lease(job, execution):
            self.executions.pop(execution.id, None)
            return
        self._is_requeued = True
        if self.is_stopping:
            self._requeue(job, "requeued: its worker is stopping", execution)
            logger.info("job %s is requeued, because this worker is stopping", job.id)
        elif self._is_overdue:
            reason = f"killed: it did not stop within {self.cancel_s:g} s"
            self._requeue(job, reason, execution)
        else:
            self.metrics.children_lost.inc()
            worker_lost(self._store, job)
            super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)

    def _requeue(self, job: RQJob, reason: str, execution: Execution | None) -> None:
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(job, pipeline=pipeline, execution=execution)
            self._deliveries.requeue(self._store, job, reason, pipeline)
            pipeline.execute()

    def _enqueue_again(self, job_id: str) -> None:
        """Deliver a job that its child has requeued, or that was resumed before the child ended."""
        try:
            self._deliveries.enqueue_again(self._store, job_id)
        except JobStoreUnavailable as error:
            self.log.warning("cannot check now whether job %s is queued: %s", job_id, error)

    def _on_abandoned(self, job: RQJob, kind: type[BaseException], *_rest: object) -> None:
        """Called by RQ for an expired lease, before it delivers again or gives up."""
        if issubclass(kind, AbandonedJobError):
            began, self._is_requeued = time.time(), True
            self.metrics.leases_expired.inc()
            worker_lost(self._store, job)
            self._count_end(job.id, began)

    def _record_progress(self, job_id: str) -> Job | None:
        """Read the job, and count its progress. None if it cannot be read now."""
        try:
            job = self._store.get(job_id)
        except (JobNotFound, JobStoreUnavailable):
            return None
        self.metrics.record_progress(job)
        return job

    def _count_end(self, job_id: str, began: float) -> None:
        """Count the end of a job, unless it had ended before ``began``."""
        if (job := self._record_progress(job_id)) is None:
            return
        has_another_worker = job.worker not in (None, self.name)
        if not has_another_worker and job.finished_at is not None and job.finished_at >= began:
            self.metrics.ended.labels(job.status.value).inc()
            return
        # a job that its own child has requeued is not lost
        is_lost = has_another_worker or (job.status is JobStatus.QUEUED and job.num_lost > 0)
        if is_lost and not self._is_requeued:
            self.metrics.leases_lost.inc()

    def clean_registries(self) -> None:
        """Find expired leases, unless a worker may have had no chance to renew its own."""
        try:
            if self._could_renew():
                with wrong_types_as_outages():
                    super().clean_registries()  # type: ignore[no-untyped-call]  # so it is in RQ
                self._deliveries.recover(self._store)
        except (JobStoreUnavailable, *UNAVAILABLE) as error:
            self.log.warning("cannot look for lost jobs now: %s", error)

    def _could_renew(self) -> bool:
        """Whether Redis has run and accepted writes for the last lease, as far as is known."""
        server: Any = self.connection.info("server")
        errors: Any = self.connection.info("errorstats")
        counts = (errors.get(f"errorstat_{word}", {}).get("count", 0) for word in REFUSALS)
        num_refused = sum(counts)
        if num_refused != self._num_refused:
            self._num_refused = num_refused
            self._renewable_since_s = time.monotonic()
        has_run = server["uptime_in_seconds"] > self._lease_s
        return has_run and time.monotonic() > self._renewable_since_s + self._lease_s


def _is_at_rest(job: Job | None) -> bool:
    """Whether the job has ended or is paused. A child records that, gives the lease back, and then
    takes a moment to end."""
    return job is not None and (job.status is JobStatus.PAUSED or job.status.is_final)
