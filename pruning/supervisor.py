"""The parent process of a worker: takes jobs, runs each in a child of its own, minds its lease.

The child is killed rather than asked when the worker stops or has lost the lease; the job is then
delivered again. A child never outlives its parent. Knows no torch: only the child pays for it.
"""

import logging
import os
import secrets
import signal
import socket
import sys
import threading
from contextlib import suppress
from resource import struct_rusage
from types import FrameType
from typing import Any

import redis
from redis import exceptions as redis_errors
from rq.exceptions import AbandonedJobError, StopRequested
from rq.executions import Execution
from rq.job import Job as Delivery
from rq.queue import Queue
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.worker import Worker, WorkerStatus

from pruning.config import WorkerSettings, child_environment
from pruning.jobs import JobStore, JobStoreUnavailable
from pruning.process import end_with_parent
from pruning.queue import LEASE_S, LeasedQueue, PruneQueue, connect, worker_lost

_CHILD = "from pruning.supervisor import run_child; run_child()"
_LOG = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_LOOK_UP_S = 0.1
_AWAY = (redis_errors.ConnectionError, redis_errors.TimeoutError)


class WorkerEnded(RuntimeError):
    """The worker stopped although nobody asked it to."""


def run_worker(settings: WorkerSettings, redis_url: str, *, lease_s: int = LEASE_S) -> None:
    """Run jobs one after the other until SIGTERM or SIGINT; in the main thread only.

    Either signal ends it within seconds: a running job goes back to the queue. Raises
    ``WorkerEnded`` if it stops for any other reason.
    """
    logging.basicConfig(level=settings.log_level.upper(), format=_LOG)
    client = connect(redis_url)
    name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
    worker = PruneWorker(name, client, lease_s=lease_s)
    worker.environment = child_environment(settings, redis_url)
    try:
        # RQ tells every few seconds that it has cleaned up
        worker.work(logging_level="DEBUG" if settings.log_level == "debug" else "WARNING")
    finally:
        client.close()
    if not worker.is_stopping:
        raise WorkerEnded("the worker stopped by itself: its log says why")


def run_child() -> None:
    """Run one delivery, named on the command line, in a process that ends with its parent."""
    name, job_id, execution_id, parent, lease_s = sys.argv[1:]
    end_with_parent(int(parent), signal.SIGKILL)  # outside Linux the lease must do
    settings = WorkerSettings()
    logging.basicConfig(level=settings.log_level.upper(), format=_LOG)
    assert settings.redis_url is not None  # the parent has put it into our environment
    client = connect(settings.redis_url)
    worker = PruneWorker(name, client, lease_s=int(lease_s), is_child=True)
    delivery = Delivery.fetch(job_id, client, JSONSerializer)
    execution = Execution.fetch(execution_id, job_id, connection=client)
    execution._job = delivery
    worker.execution = execution
    worker.main_work_horse(delivery, worker.queues[0])


class PruneWorker(Worker):
    """RQ's worker, made for jobs of hours whose lease is seconds.

    Not RQ's ``SpawnWorker``, which puts the password of Redis onto a command line.
    """

    queue_class = LeasedQueue

    def __init__(
        self, name: str, client: redis.Redis, *, lease_s: int, is_child: bool = False
    ) -> None:
        self._deliveries = PruneQueue(client, lease_s=lease_s)
        self._store = JobStore(client)
        self._lease_s = lease_s
        self.environment: dict[str, str] = {}  # of the children
        self.is_stopping = False
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

    def get_heartbeat_ttl(self, job: Delivery, working_time: float = 0.0) -> int:  # noqa: ARG002 - the signature is RQ's
        return self._lease_s

    def fork_work_horse(self, job: Delivery, queue: Queue) -> None:  # noqa: ARG002 - the signature is RQ's
        assert self.execution is not None
        who = (self.name, job.id, self.execution.id, str(os.getpid()), str(self._lease_s))
        command = [sys.executable, "-c", _CHILD, *who]
        # a process group of its own: Ctrl-C is for the parent
        self._horse_pid = os.posix_spawn(sys.executable, command, self.environment, setpgroup=0)
        if self.is_stopping:  # the signal came while there was nothing to kill yet
            self.kill_horse()

    def kill_horse(self, sig: signal.Signals = signal.SIGKILL) -> None:
        if self.horse_pid:  # group 0 would be our own
            super().kill_horse(sig)

    def request_stop(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is RQ's
        """Kill the child, after whose death the job is handed back. Asked again, just leave."""
        if self.is_stopping:
            raise SystemExit(1)
        self.is_stopping = self._stop_requested = True
        self.kill_horse()
        if self.get_state() != WorkerStatus.BUSY:
            raise StopRequested

    def execute_job(self, job: Delivery, queue: Queue) -> None:
        if job.id in queue.started_job_registry:  # delivered twice, and somebody has its lease
            queue.intermediate_queue.remove(job.id)
        else:
            super().execute_job(job, queue)

    def wait_for_horse(self) -> tuple[int | None, int | None, struct_rusage | None]:
        """As RQ's, but looking up: a signal that another thread has got interrupts no ``wait4``."""
        with suppress(ChildProcessError):
            while True:
                ended = os.wait4(self.horse_pid, os.WNOHANG)
                if ended[0]:
                    return ended
                threading.Event().wait(_LOOK_UP_S)
        return None, None, None

    def maintain_heartbeats(self, job: Delivery, execution: Execution) -> None:
        if self.is_stopping:  # RQ's alarm may have broken into ``request_stop``
            self.kill_horse()
        try:
            super().maintain_heartbeats(job, execution)
            if not self._holds(job, execution):
                self.log.error("the lease of job %s was lost, so its child is killed", job.id)
                self.kill_horse()
        except _AWAY as error:
            self.log.warning("no heartbeat for job %s: %s", job.id, error)

    def _holds(self, job: Delivery, execution: Execution) -> bool:
        key = job.started_job_registry.key
        return self.connection.zscore(key, execution.composite_key) is not None

    def handle_job_failure(
        self,
        job: Delivery,
        queue: Queue,
        started_job_registry: StartedJobRegistry | None = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        """The child died, or the task raised: deliver again, unless somebody else already has."""
        queue.intermediate_queue.remove(job.id)
        if execution is not None and not self._holds(job, execution):
            self.executions.pop(execution.id, None)
        elif self.is_stopping:
            self._hand_back(job, execution)
        else:
            worker_lost(self._store, job)
            super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)

    def _hand_back(self, job: Delivery, execution: Execution | None) -> None:
        with self.connection.pipeline() as pipeline:
            self.cleanup_execution(job, pipeline=pipeline, execution=execution)
            self._deliveries.hand_back(self._store, job, pipeline)
            pipeline.execute()

    def _abandoned(self, job: Delivery, kind: type[BaseException], *_rest: object) -> None:
        """RQ has found that a lease ran out, and is about to deliver again or to give up."""
        if issubclass(kind, AbandonedJobError):
            worker_lost(self._store, job)

    def clean_registries(self) -> None:
        """Look for leases that ran out, except while nobody could renew his: Redis was away."""
        try:
            info: Any = self.connection.info("server")
            if info["uptime_in_seconds"] > self._lease_s:
                super().clean_registries()  # type: ignore[no-untyped-call]  # so it is in RQ
                self._deliveries.recover(self._store)
        except (JobStoreUnavailable, *_AWAY) as error:
            self.log.warning("lost jobs are looked for later: %s", error)
