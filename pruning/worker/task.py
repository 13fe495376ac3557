"""The task of a delivery: run one job in this process, and record its progress and its end.

If this process dies, the parent delivers the job again. Torch is imported only once there is a job
to run, see ``run.py``.
"""

import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TypeVar

from redis.backoff import ExponentialBackoff
from redis.retry import Retry
from rq import get_current_job

from pruning.config import WorkerSettings
from pruning.healing.record import Step
from pruning.jobs import transitions
from pruning.jobs.job import (
    HealProgress,
    IllegalTransition,
    Job,
    JobNotFound,
    JobStatus,
    Phase,
    Sink,
    StopRequest,
)
from pruning.jobs.queue import DELIVERIES, give_up
from pruning.jobs.redis import JobStoreUnavailable, connect
from pruning.jobs.script import Change, StaleAttempt
from pruning.jobs.store import JobStore
from pruning.process import deferred_signal
from pruning.removal import Removal
from pruning.search.observed import Observer
from pruning.search.state import ScoredCandidate, SearchPlan, SearchState
from pruning.worker.senders import sinks_of

_T = TypeVar("_T")
_NUM_RETRIES = 60  # at most 1 s apart, as long as a restart of Redis may take
_STOP_REQUESTED = (JobStatus.RUNNING, JobStatus.CANCELLING)  # where a start is refused

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """A cancel or pause was requested. Raised in the run, between two evaluations."""


class WorkerStopping(Exception):
    """The worker is stopping. Raised in the run, once its progress is recorded."""


def run_job(job_id: str) -> None:
    """Run the job in this process. Raises ``StaleAttempt`` once another worker has the job."""
    settings = WorkerSettings()
    assert settings.redis_url is not None  # set by the parent
    delivery = get_current_job()
    worker = delivery.worker_name if delivery and delivery.worker_name else "unnamed"

    def run(job: Job, observer: JobObserver) -> str:
        from pruning.worker.run import prune_job  # noqa: PLC0415 - imports torch, in seconds

        return prune_job(settings, job, observer, observer.earlier, observer.confirm)

    # no retries: a search does not wait until its progress is recorded
    with closing(JobStore(connect(settings.redis_url, num_retries=0))) as store:
        execute(job_id, store, worker, run, sinks_of(settings))


def execute(
    job_id: str,
    store: JobStore,
    worker: str,
    run: Callable[[Job, "JobObserver"], str],
    sinks: Sequence[Sink] = (),
) -> None:
    """Start the job, call ``run``, which returns the name of the checkpoint, and record the end.

    If it has succeeded, it is due to be sent to ``sinks``. Does nothing if the job has ended.
    SIGTERM ends this process once the current evaluation is recorded. Raises ``StaleAttempt``.
    """
    try:
        job = _retried(lambda: store.start(job_id, worker))
    except JobNotFound:
        return
    except IllegalTransition as refused:
        if refused.status in _STOP_REQUESTED:  # the last worker died before it stopped
            _retried(lambda: store.stopped(job_id))
        return
    if job.num_lost >= DELIVERIES:
        give_up(store, job_id)
        return
    logger.info("job %s: attempt %d", job_id, job.attempt)
    earlier = _retried(lambda: store.search_state(job_id))
    with deferred_signal(signal.SIGTERM) as is_terminating:
        observer = JobObserver(store, job, earlier, is_terminating)
        try:
            end = _outcome(store, job, observer, run, sinks)
        except WorkerStopping:
            logger.info("job %s: requeued, because the worker is stopping", job_id)
            os._exit(1)  # an exception would end the job for RQ
    _retried(observer.catch_up)
    logger.info("job %s: %s", job_id, _retried(end))


def _outcome(
    store: JobStore,
    job: Job,
    observer: "JobObserver",
    run: Callable[[Job, "JobObserver"], str],
    sinks: Sequence[Sink],
) -> Callable[[], JobStatus]:
    """Run the job, and return a function that records its end."""
    try:
        pruned_model = run(job, observer)
    except Stopped:
        return lambda: store.stopped(job.id, job.attempt)
    except (StaleAttempt, JobStoreUnavailable, WorkerStopping):
        raise
    except Exception as error:
        from pruning.worker.run import describe, exhausted_memory  # noqa: PLC0415 - torch

        logger.exception("job %s failed", job.id)
        memory, described = exhausted_memory(error), describe(error)
        if memory is not None and not job.num_halvings:
            reason = f"{memory}: retrying with half the batch size"
            return lambda: store.short_of_memory(job.id, reason, job.attempt)
        return lambda: store.fail(job.id, described, job.attempt)
    return lambda: store.succeed(job.id, pruned_model, job.attempt, sinks)


class JobObserver(Observer):
    """Records the progress of one attempt, and stops the run when that is requested.

    While Redis is unavailable the run continues, and its progress is recorded later. Once
    ``is_terminating()``, the next record raises ``WorkerStopping``.
    """

    def __init__(
        self,
        store: JobStore,
        job: Job,
        earlier: SearchState,
        is_terminating: Callable[[], bool] = lambda: False,
    ) -> None:
        self.earlier = earlier
        self._store = store
        self._id = job.id
        self._attempt = job.attempt
        self._plan = earlier.plan
        self._removals = list(earlier.removals)
        # writes that must not be lost, in order
        self._pending: list[Change] = []
        self._done: int | None = None  # evaluations, as last recorded
        self._held_out_losses: dict[str, float] = {}  # of the healing
        self._is_away = False
        self._is_terminating = is_terminating

    def phase(self, phase: str) -> None:
        self._write(transitions.phase_begun(Phase(phase)))

    def calibrating(self, done: int, total: int) -> None:  # noqa: ARG002 - not recorded
        self._write()  # stops on request

    def searching(self, plan: SearchPlan, done: int, total: int) -> None:
        is_anew, self._done = plan != self._plan, done
        if is_anew:
            self._plan, self._removals = plan, []
        self._pending.append(transitions.searching(plan, done, total, is_anew=is_anew))
        self._write()

    def evaluated(self, done: int, total: int, scored: Sequence[ScoredCandidate] = ()) -> None:
        before, self._done = self._done, done
        self._write(transitions.evaluated(done, total, scored, before))

    def removed(self, removal: Removal) -> None:
        # those behind it were recorded, and were no removals of this search
        self._removals = [*self._removals[: removal.step - 1], removal]
        self._pending.append(transitions.removed(self._removals))
        self._write()

    def repairing(self, done: int, total: int) -> None:
        self._write(transitions.repairing(done, total))

    def healing(self, which: str, step: Step) -> None:
        if step.check is not None:
            self._held_out_losses[which] = step.check.loss
        progress = HealProgress(
            training=which,
            num_tokens=step.num_tokens,
            ratio=step.ratio,
            loss=step.loss,
            tokens_per_s=step.tokens_per_s,
            seconds=step.seconds,
            held_out_loss=self._held_out_losses.get(which),
        )
        self._write(transitions.healing(progress, is_check=step.check is not None))

    def warned(self, message: str) -> None:
        self._pending.append(transitions.warned(message))
        self._write()

    def confirm(self) -> None:
        """Check before publishing that this attempt still has the job, with retries.

        The job may have ended in another worker and been deleted since. Raises ``StaleAttempt``,
        ``Stopped``, or ``JobStoreUnavailable`` if Redis stays unavailable.
        """
        try:
            request = _retried(lambda: self._record(transitions.confirmed()))
        except (IllegalTransition, JobNotFound) as error:
            raise StaleAttempt(str(error)) from error
        if request is not None:
            raise Stopped

    def catch_up(self) -> StopRequest | None:
        """Record what could not be recorded while Redis was unavailable."""
        request = None
        while self._pending:
            request = self._record(self._pending[0])
            del self._pending[0]
        return request

    def _record(self, change: Change) -> StopRequest | None:
        return self._store.record(self._id, change, self._attempt)

    def _write(self, change: Change | None = None) -> None:
        try:
            request = self.catch_up()
            request = self._record(change) if change is not None else request
        except JobStoreUnavailable as error:
            if not self._is_away:
                logger.warning("progress cannot be recorded, the search continues: %s", error)
            self._is_away = True
        except IllegalTransition as error:
            raise StaleAttempt(str(error)) from error
        else:
            self._is_away = False
            if request is not None:
                raise Stopped
            if self._is_terminating():
                raise WorkerStopping


def _retried(write: Callable[[], _T]) -> _T:
    """Call ``write``, and retry while Redis is unavailable."""
    backoff = ExponentialBackoff(cap=1, base=0.05)
    retry = Retry(backoff, _NUM_RETRIES, (JobStoreUnavailable,))
    return retry.call_with_retry(write, lambda _error: None)
