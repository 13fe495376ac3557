"""The parent process of a worker: takes jobs, runs each in a child of its own, minds its lease.

The child is killed rather than asked when the worker has lost the lease; the job is then delivered
again. It is killed as well if it does not do what it is asked: to cancel, to pause, or to end its
evaluation because the worker stops.
A child never outlives its parent. Knows no torch: only the child pays for it.
"""

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
    worker_lost,
)
from pruning.jobs.redis import UNAVAILABLE, JobStoreUnavailable
from pruning.jobs.store import JobStore
from pruning.worker.metrics import WorkerMetrics
from pruning.worker.task import run_job

_LOOK_UP_S = 0.1
_LEAVE_S = 6.0  # that a child may take to end its evaluation; the worker itself has 10 s


class PruneDelivery(Delivery):
    """Runs ``run_job``, and nothing else."""

    tasks: ClassVar[Mapping[str, Task]] = MappingProxyType({TASK: run_job})


class PruneWorker(Worker):
    """RQ's worker, made for jobs of hours whose lease is seconds.

    Not RQ's ``SpawnWorker``, which puts the password of Redis onto a command line.
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
        self.cancel_s = math.inf  # that a child may take to stop after it was asked
        self._asked_s: float | None = None  # when that was, as far as its parent knows
        self._is_overdue = False
        self.is_stopping = False
        self._kill_at_s = math.inf  # the child, if it has not ended by then
        self.metrics = WorkerMetrics(name, lease_s)
        self._has_sent_back = False  # the job that it has
        super().__init__(
            [self._deliveries.rq],
            name,
            connection=client,
            serializer=JSONSerializer,
            worker_ttl=15 + max(1, lease_s // 3),  # RQ waits for a job for all but 15 s of it
            maintenance_interval=max(1, lease_s * 2 // 3),
            job_monitoring_interval=max(1, lease_s // 3),
            exception_handlers=[self._abandoned],
            log_job_description=False,
            prepare_for_work=not is_child,
        )

    def get_heartbeat_ttl(self, job: RQJob, working_time: float = 0.0) -> int:  # noqa: ARG002 - the signature is RQ's
        return self._lease_s

    def fork_work_horse(self, job: RQJob, queue: Queue) -> None:  # noqa: ARG002 - the signature is RQ's
        assert self.execution is not None
        who = (self.name, job.id, self.execution.id, str(os.getpid()), str(self._lease_s))
        command = [sys.executable, "-c", self.child, *who]
        # a process group of its own: Ctrl-C is for the parent
        self._horse_pid = os.posix_spawn(sys.executable, command, self.environment, setpgroup=0)
        if self.is_stopping:  # the signal came while there was nobody to ask yet
            self.kill_horse()

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        if self.horse_pid:  # group 0 would be our own
            super().kill_horse(sig)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is RQ's
        """Ask the child to end, after which the job is handed back. Asked again, just leave."""
        if self.is_stopping:
            raise SystemExit(1)
        self.is_stopping = self._stop_requested = True
        self._ask_child_to_end()
        if self.get_state() != WorkerStatus.BUSY:
            raise StopRequested

    def _ask_child_to_end(self) -> None:
        self._kill_at_s = min(self._kill_at_s, time.monotonic() + _LEAVE_S)
        if self.horse_pid:
            with suppress(ProcessLookupError):  # itself, not what it has started
                os.kill(self.horse_pid, signal.SIGTERM)

    def execute_job(self, job: RQJob, queue: Queue) -> None:
        if job.id in queue.started_job_registry:  # delivered twice, and somebody has its lease
            queue.intermediate_queue.remove(job.id)
            return
        try:
            _ = job.func
        except DeliveryRefused as refusal:
            self.log.error("delivery %r is refused: %s", job.id, refusal)
            queue.intermediate_queue.remove(job.id)
            self.connection.delete(job.key)  # if there is such a job, it is delivered anew
            return
        began, self._has_sent_back = time.time(), False
        self._asked_s, self._is_overdue = None, False
        with self.metrics.busy():
            super().execute_job(job, queue)
        self._count_end(job.id, began)
        self._enqueue_again(job.id)

    def wait_for_horse(self) -> tuple[int | None, int | None, struct_rusage | None]:
        """As RQ's, but looking up: a signal that another thread has got interrupts no ``wait4``."""
        with suppress(ChildProcessError):
            while True:
                ended = os.wait4(self.horse_pid, os.WNOHANG)
                if ended[0]:
                    return ended
                if time.monotonic() >= self._kill_at_s:
                    self.kill_horse()
                threading.Event().wait(_LOOK_UP_S)
        return None, None, None

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        super().heartbeat(timeout, pipeline)
        if pipeline is None:  # or it is sent later
            self.metrics.heartbeat()

    def maintain_heartbeats(self, job: RQJob, execution: Execution) -> None:
        if self.is_stopping:  # RQ's alarm may have broken into ``request_stop``
            self._ask_child_to_end()
        try:
            super().maintain_heartbeats(job, execution)
            self.metrics.heartbeat()
            self._kill_if_overdue(self._look(job.id))
            if not self._holds(job, execution):
                self.log.error("the lease of job %s was lost, so its child is killed", job.id)
                self.kill_horse()
        except UNAVAILABLE as error:
            self.log.warning("no heartbeat for job %s: %s", job.id, error)

    def _kill_if_overdue(self, job: Job | None) -> None:
        if job is None:  # not now, or not any more
            return
        if job.stop_request is None:
            self._asked_s = None
            return
        now_s = time.monotonic()
        self._asked_s = now_s if self._asked_s is None else self._asked_s
        if now_s - self._asked_s >= self.cancel_s:
            self.log.warning("job %s does not %s, so its child is killed", job.id, job.stop_request)
            self._is_overdue = True
            self.kill_horse()

    def _holds(self, job: RQJob, execution: Execution) -> bool:
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
        """The child died, or the task raised: deliver again, unless somebody else already has."""
        queue.intermediate_queue.remove(job.id)
        self._look(job.id)  # before its record forgets the attempt
        if execution is not None and not self._holds(job, execution):
            self.executions.pop(execution.id, None)
            return
        self._has_sent_back = True
        if self.is_stopping:
            self._hand_back(job, "handed back by a worker that stops", execution)
        elif self._is_overdue:
            reason = f"killed, as it went on for {self.cancel_s:g} s after it was to stop"
            self._hand_back(job, reason, execution)
        else:
            self.metrics.child_lost()
            worker_lost(self._store, job)
            super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)

    def _hand_back(self, job: RQJob, reason: str, execution: Execution | None) -> None:
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(job, pipeline=pipeline, execution=execution)
            self._deliveries.hand_back(self._store, job, reason, pipeline)
            pipeline.execute()

    def _enqueue_again(self, job_id: str) -> None:
        """If its child has given it back, or it was resumed before its child had ended."""
        try:
            self._deliveries.enqueue_again(self._store, job_id)
        except JobStoreUnavailable as error:
            self.log.warning("whether job %s goes on is looked at later: %s", job_id, error)

    def _abandoned(self, job: RQJob, kind: type[BaseException], *_rest: object) -> None:
        """RQ has found that a lease ran out, and is about to deliver again or to give up."""
        if issubclass(kind, AbandonedJobError):
            began, self._has_sent_back = time.time(), True
            self.metrics.lease_expired()
            worker_lost(self._store, job)
            self._count_end(job.id, began)

    def _look(self, job_id: str) -> Job | None:
        """Count what is new in the record; metrics are no reason to wait or to fail."""
        try:
            job = self._store.get(job_id)
        except (JobNotFound, JobStoreUnavailable):
            return None
        self.metrics.looked_at(job)
        return job

    def _count_end(self, job_id: str, began: float) -> None:
        """Of what began then, unless the job was at its end before."""
        if (job := self._look(job_id)) is None:
            return
        is_anothers = job.worker not in (None, self.name)
        if not is_anothers and job.finished_at is not None and job.finished_at >= began:
            self.metrics.ended(job.status)
            return
        # what its child has given back by itself is not lost
        is_lost = is_anothers or (job.status is JobStatus.QUEUED and job.num_lost > 0)
        if is_lost and not self._has_sent_back:
            self.metrics.lease_lost()

    def clean_registries(self) -> None:
        """Look for leases that ran out, except while nobody could renew his: Redis was away."""
        try:
            info: Any = self.connection.info("server")
            if info["uptime_in_seconds"] > self._lease_s:
                super().clean_registries()  # type: ignore[no-untyped-call]  # so it is in RQ
                self._deliveries.recover(self._store)
        except (JobStoreUnavailable, *UNAVAILABLE) as error:
            self.log.warning("lost jobs are looked for later: %s", error)
