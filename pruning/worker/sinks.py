"""Sends the results of jobs that have succeeded to sinks, in threads of a worker's parent process.

A job is over before that begins: a sink that is slow or away delays no job and costs none. Every
worker of a job store claims what is due, and leaves a job whose checkpoint is on another disk.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from random import SystemRandom
from typing import Protocol

from pruning.jobs.job import Job, Sink
from pruning.jobs.outbox import SinkOutbox
from pruning.jobs.redis import JobStoreUnavailable

# pauses between attempts; the last one is repeated, with a jitter of a fifth
BACK_OFF_S = (5.0, 30.0, 120.0, 600.0, 3600.0)
JITTER = 0.2
POLL_S = 1.0
OUTAGE_S = 10.0  # pause after the job store was unavailable
ELSEWHERE_S = 60.0  # until a job whose checkpoint is on another disk is looked at again

logger = logging.getLogger(__name__)


class NotHere(Exception):
    """The checkpoint of the job is not on this disk."""


class NotWanted(Exception):
    """The job was deleted while it was sent, or another process has sent it."""


@dataclass(frozen=True)
class Delivered:
    url: str  # of what the sink has now
    message: str  # for the events of the job


class Sender(Protocol):
    """Sends a result to one sink."""

    def send(self, job: Job, confirm: Callable[[], object]) -> Delivered:
        """Send what the sink does not have yet. ``confirm()`` raises if that is to end.

        Raises ``NotHere``, and anything for an attempt that failed.
        """

    def withdraw(self, job: Job) -> None:
        """Remove what was sent: the job was deleted meanwhile."""


class SinkThread(threading.Thread):
    """Sends to one sink what is due, one job at a time, until ``stop``."""

    def __init__(
        self,
        sink: Sink,
        outbox: SinkOutbox,
        sender: Sender,
        on_attempt: Callable[[Sink, bool], None] = lambda _sink, _is_sent: None,
    ) -> None:
        super().__init__(name=f"send to {sink}", daemon=True)  # the process may end in between
        self._sink = sink
        self._outbox = outbox
        self._sender = sender
        self._on_attempt = on_attempt
        self._random = SystemRandom()
        self._is_stopping = threading.Event()

    def stop(self) -> None:
        """Claim no more. What is being sent is sent again when its claim has expired."""
        self._is_stopping.set()

    def run(self) -> None:
        while not self._is_stopping.is_set():
            pause_s = POLL_S
            try:
                if self.send_next():
                    pause_s = 0.0
            except JobStoreUnavailable as error:
                logger.warning("results are waiting for the job store: %s", error)
                pause_s = OUTAGE_S
            except Exception:
                logger.exception("results are waiting: one of them cannot be read")
                pause_s = OUTAGE_S
            self._is_stopping.wait(pause_s)

    def send_next(self) -> bool:
        """Send one job if one is due, and return whether there was one."""
        job = self._outbox.claim(self._sink)
        if job is None:
            return False
        try:
            with self._renewed(job) as confirm:
                delivered = self._sender.send(job, confirm)
        except NotHere:
            self._outbox.postpone(self._sink, job.id, self._outbox.now() + ELSEWHERE_S)
        except NotWanted:
            self._withdraw(job)
        except JobStoreUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - of any sink
            self._failed(job, error)
        else:
            self._on_attempt(self._sink, True)
            logger.info("job %s: %s", job.id, delivered.message)
            if not self._outbox.sent(self._sink, job, delivered.url, delivered.message):
                self._withdraw(job)
        return True

    def _failed(self, job: Job, error: Exception) -> None:
        self._on_attempt(self._sink, False)
        reason = str(error) or type(error).__name__
        logger.warning("job %s is not sent to %s yet: %s", job.id, self._sink, reason)
        at = min(job.sinks[self._sink].num_attempts, len(BACK_OFF_S) - 1)
        pause_s = BACK_OFF_S[at] * self._random.uniform(1 - JITTER, 1 + JITTER)
        self._outbox.failed(self._sink, job, reason, self._outbox.now() + pause_s)

    def _withdraw(self, job: Job) -> None:
        """Take back what was sent of a job that was deleted, and nothing that another has sent."""
        if job.checkpoint_name not in self._outbox.withdrawn(self._sink):
            return
        try:
            self._sender.withdraw(job)
        except Exception as error:  # noqa: BLE001 - of any sink
            logger.warning("job %s was deleted, but not from %s: %s", job.id, self._sink, error)

    @contextmanager
    def _renewed(self, job: Job) -> Iterator[Callable[[], None]]:
        """Renew the claim meanwhile. Yields what raises ``NotWanted`` once the job is deleted."""
        is_over, is_wanted = threading.Event(), True

        def renew() -> None:
            nonlocal is_wanted
            while is_wanted and not is_over.wait(self._outbox.lease_s / 3):
                with suppress(JobStoreUnavailable):
                    is_wanted = self._outbox.renew(self._sink, job.id)

        def confirm() -> None:
            if not is_wanted or not self._outbox.renew(self._sink, job.id):
                raise NotWanted

        thread = threading.Thread(target=renew, name="renew a claim", daemon=True)
        thread.start()
        try:
            yield confirm
        finally:
            is_over.set()
            thread.join()


@contextmanager
def sending(
    senders: Mapping[Sink, Sender],
    outbox: SinkOutbox,
    on_attempt: Callable[[Sink, bool], None],
) -> Iterator[None]:
    """Send to these sinks in the background."""
    threads = [SinkThread(sink, outbox, sender, on_attempt) for sink, sender in senders.items()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.stop()
        for thread in threads:
            thread.join(POLL_S)  # one that is sending is cut short
