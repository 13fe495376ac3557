"""The task of a delivery: runs one job in a process of its own and writes down how it goes.

Knows no queue: whatever ends this process, the job is delivered again. Torch is imported only
once there is something to prune.
"""

import logging
import os
import signal
from collections.abc import Callable
from contextlib import closing
from typing import TypeVar

from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq import get_current_job

from pruning.config import WorkerSettings
from pruning.jobs.job import IllegalTransition, Job, JobNotFound, JobStatus, Phase, StopRequest
from pruning.jobs.queue import DELIVERIES, give_up
from pruning.jobs.redis import JobStoreUnavailable, connect
from pruning.jobs.script import StaleAttempt
from pruning.jobs.store import JobStore
from pruning.process import heeding
from pruning.removal import Removal
from pruning.search.state import Plan, Scored, SearchState

_T = TypeVar("_T")
_PATIENCE_S = 60
_ASKED = (JobStatus.RUNNING, JobStatus.CANCELLING)  # to stop, if starting is refused

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The job is to be cancelled or paused: raised out of the run, between two evaluations."""


class WorkerStops(Exception):
    """The worker is to stop: raised out of the run once what it has found is written down."""


def run_job(job_id: str) -> None:
    """Run the job in this process. Raises ``StaleAttempt`` once another worker has it."""
    settings = WorkerSettings()
    assert settings.redis_url is not None  # the parent has put it into our environment
    delivery = get_current_job()
    worker = delivery.worker_name if delivery and delivery.worker_name else "unnamed"
    # no patience with progress: a search does not wait for it
    with closing(JobStore(connect(settings.redis_url, num_retries=0))) as store:
        execute(job_id, store, worker, lambda job, observer: _prune(settings, job, observer))


def _prune(settings: WorkerSettings, job: Job, observer: "JobObserver") -> str:
    # Torch takes seconds, which a job that has ended already need not wait for.
    from pruning.checkpoints.store import CheckpointStore  # noqa: PLC0415 - as said above
    from pruning.models.memory import BATCH_TOKENS  # noqa: PLC0415 - as said above
    from pruning.models.store import ModelStore, set_up_torch  # noqa: PLC0415 - as said above
    from pruning.pipeline import prune  # noqa: PLC0415 - as said above
    from pruning.search.dense_model import Resources  # noqa: PLC0415 - as said above

    set_up_torch(settings.threads)
    name = job.checkpoint_name
    prune(
        job.spec,
        name=name,
        target=CheckpointStore(settings.checkpoints_dir).path(name),
        models=ModelStore(settings.models_dir),
        observer=observer,
        resources=Resources(
            settings.device,
            settings.state_budget,
            settings.num_actors,
            BATCH_TOKENS >> job.num_halvings,
            settings.tasks_dir,
        ),
        earlier=observer.earlier,
        confirm=observer.confirm,
        verify=settings.verify,
    )
    return name


def execute(
    job_id: str, store: JobStore, worker: str, run: Callable[[Job, "JobObserver"], str]
) -> None:
    """Take the job, ``run`` it to the name of a published model, record how it ended.

    A job that has ended is left alone. SIGTERM ends this process, as soon as the evaluation that
    runs is recorded. Raises what ``run_job`` raises.
    """
    try:
        job = _insist(lambda: store.start(job_id, worker))
    except JobNotFound:
        return
    except IllegalTransition as refused:
        if refused.status in _ASKED:  # its worker died before it could obey
            _insist(lambda: store.stopped(job_id))
        return
    if job.num_lost >= DELIVERIES:
        give_up(store, job_id)
        return
    logger.info("job %s: attempt %d", job_id, job.attempt)
    earlier = _insist(lambda: store.search_state(job_id))
    with heeding(signal.SIGTERM) as is_to_end:
        observer = JobObserver(store, job, earlier, is_to_end)
        try:
            end = _outcome(store, job, observer, run)
        except WorkerStops:
            logger.info("job %s: left, as the worker stops", job_id)
            os._exit(1)  # RQ would take an exception for the end of the job
    _insist(observer.catch_up)
    logger.info("job %s: %s", job_id, _insist(end))


def _outcome(
    store: JobStore, job: Job, observer: "JobObserver", run: Callable[[Job, "JobObserver"], str]
) -> Callable[[], JobStatus]:
    """Run the job; what is returned records its end."""
    try:
        pruned_model = run(job, observer)
    except Stopped:
        return lambda: store.stopped(job.id, job.attempt)
    except (StaleAttempt, JobStoreUnavailable, WorkerStops):
        raise
    except Exception as error:
        from pruning.models.memory import is_out_of_memory, shortage  # noqa: PLC0415 - as above
        from pruning.worker.failures import describe  # noqa: PLC0415 - as above

        logger.exception("job %s failed", job.id)
        if is_out_of_memory(error) and not job.num_halvings:
            reason = f"{shortage(error)}: tried once more, with half the batch"
            return lambda: store.short_of_memory(job.id, reason, job.attempt)
        failure = describe(error)
        return lambda: store.fail(job.id, failure, job.attempt)
    return lambda: store.succeed(job.id, pruned_model, job.attempt)


class JobObserver:
    """Writes the progress of one attempt, and stops the run when the record says so.

    Progress that cannot be written is no reason to stop: the next that can is newer. Once
    ``is_to_end``, the run is left behind the next write.
    """

    def __init__(
        self,
        store: JobStore,
        job: Job,
        earlier: SearchState,
        is_to_end: Callable[[], bool] = lambda: False,
    ) -> None:
        self.earlier = earlier
        self._store = store
        self._id = job.id
        self._attempt = job.attempt
        self._plan = earlier.plan
        self._removals = list(earlier.removals)
        # what must not be lost, in order
        self._unwritten: list[Callable[[], StopRequest | None]] = []
        self._is_away = False
        self._is_to_end = is_to_end

    def phase(self, phase: str) -> None:
        self._write(lambda: self._store.set_phase(self._id, Phase(phase), self._attempt))

    def searching(self, plan: Plan, done: int, total: int) -> None:
        is_anew = plan != self._plan
        if is_anew:
            self._plan, self._removals = plan, []
        self._unwritten.append(
            lambda: self._store.searching(
                self._id, plan, done, total, self._attempt, is_anew=is_anew
            )
        )
        self._write()

    def evaluated(self, done: int, total: int, scored: Scored | None = None) -> None:
        self._write(lambda: self._store.evaluated(self._id, done, total, self._attempt, scored))

    def removed(self, removal: Removal) -> None:
        self._removals.append(removal)
        found = tuple(self._removals)
        self._unwritten.append(lambda: self._store.removed(self._id, found, self._attempt))
        self._write()

    def warned(self, message: str) -> None:
        self._unwritten.append(lambda: self._store.warn(self._id, message, self._attempt))
        self._write()

    def confirm(self) -> None:
        """Ask whether the job is still there and ours, for as long as it takes to be answered.

        Who does not know may not publish: the job may have ended elsewhere, and been deleted.
        """
        try:
            request = _insist(lambda: self._store.confirm(self._id, self._attempt))
        except (IllegalTransition, JobNotFound) as error:
            raise StaleAttempt(str(error)) from error
        if request is not None:
            raise Stopped

    def catch_up(self) -> StopRequest | None:
        """Write what must not be lost and could not be written when it was found."""
        request = None
        while self._unwritten:
            request = self._unwritten[0]()
            del self._unwritten[0]
        return request

    def _write(self, write: Callable[[], StopRequest | None] | None = None) -> None:
        try:
            request = self.catch_up()
            request = write() if write is not None else request
        except JobStoreUnavailable as error:
            if not self._is_away:
                logger.warning("the search goes on, its progress is not recorded: %s", error)
            self._is_away = True
        except IllegalTransition as error:
            raise StaleAttempt(str(error)) from error
        else:
            self._is_away = False
            if request is not None:
                raise Stopped
            if self._is_to_end():
                raise WorkerStops


def _insist(write: Callable[[], _T]) -> _T:
    """Write what must not be lost, for as long as a Redis that restarts may take."""
    backoff = ExponentialBackoff(cap=1, base=0.05)
    retry = Retry(backoff, _PATIENCE_S, (JobStoreUnavailable,))
    return retry.call_with_retry(write, lambda _error: None)
