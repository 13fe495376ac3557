"""Delivers the webhook messages of the outbox, on the event loop of an API process.

Several processes may do so concurrently: each claims the messages that it delivers. The claims of a
process that dies expire.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import SystemRandom
from typing import Any

from fastapi.concurrency import run_in_threadpool

from app.webhooks.sender import SendResult, WebhookSender
from pruning.jobs.job import Job
from pruning.jobs.outbox import DeliveryAttempt, Message, WebhookOutbox
from pruning.jobs.redis import JobStoreUnavailable

_MINUTE_S, _HOUR_S = 60.0, 3600.0
# pauses between attempts, with a jitter of a fifth: about two days in total
BACK_OFF_S = (
    5.0,
    5 * _MINUTE_S,
    30 * _MINUTE_S,
    *(hours * _HOUR_S for hours in (2, 5, 10, 14, 20)),
)
JITTER = 0.2
MAX_CONCURRENT = 32
POLL_S = 1.0
OUTAGE_S = 10.0  # pause after the job store was unavailable

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class WebhookDeliverer:
    """``describe`` returns the ``data`` of a message about a job, as JSON values. It may read
    files.
    """

    outbox: WebhookOutbox
    sender: WebhookSender
    describe: Callable[[Job], Mapping[str, Any]]
    back_off_s: Sequence[float] = BACK_OFF_S
    poll_s: float = POLL_S
    _is_stopping: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _loop: asyncio.Task[None] | None = field(default=None, init=False)
    _deliveries: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    def start(self) -> None:
        """Start to deliver due messages in the background."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self, timeout_s: float) -> None:
        """Claim no more messages, and wait for running deliveries, ``timeout_s`` at most.

        Deliveries that are cut short are repeated when their claims expire, so a receiver may get a
        message twice.
        """
        self._is_stopping.set()
        if self._loop is not None:
            await self._loop
        if self._deliveries:
            await asyncio.wait(self._deliveries, timeout=timeout_s)
        for delivery in self._deliveries:
            delivery.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)
        self.sender.close()

    async def claim_due(self) -> Sequence[asyncio.Task[None]]:
        """Start the delivery of due messages, up to ``MAX_CONCURRENT`` at once."""
        room = MAX_CONCURRENT - len(self._deliveries)
        messages = await run_in_threadpool(self.outbox.claim, room)
        started = [asyncio.create_task(self._deliver(message)) for message in messages]
        self._deliveries.update(started)
        for delivery in started:
            delivery.add_done_callback(self._deliveries.discard)
        return started

    async def _run(self) -> None:
        while not self._is_stopping.is_set():
            pause_s = self.poll_s
            try:
                await self.claim_due()
            except JobStoreUnavailable as error:
                logger.warning("webhook messages are waiting: %s", error)
                pause_s = OUTAGE_S
            except Exception:
                logger.exception("webhook messages are waiting: one of them cannot be read")
                pause_s = OUTAGE_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopping.wait(), pause_s)

    async def _deliver(self, message: Message) -> None:
        at, started_s = self.outbox.now(), time.monotonic()
        try:
            result = await self._send(message)
        except Exception:
            logger.exception("webhook message %s cannot be sent", message.id)
            result = SendResult(None, "internal error: see the service log")
        attempt = DeliveryAttempt(
            message_id=message.id,
            type=message.type,
            number=message.num_attempts + 1,
            at=at,
            duration_s=time.monotonic() - started_s,
            response_status=result.status,
            error=result.error,
            next_attempt_at=self._next_attempt_at(message, result),
        )
        if attempt.error is not None:
            is_last = attempt.next_attempt_at is None
            level, fate = (logging.WARNING, "given up") if is_last else (logging.INFO, "retried")
            logger.log(level, "webhook message %s is %s: %s", message.id, fate, result.error)
        try:
            await run_in_threadpool(self.outbox.settle, message, attempt)
        except JobStoreUnavailable as error:
            logger.warning("webhook message %s may be delivered twice: %s", message.id, error)

    async def _send(self, message: Message) -> SendResult:
        job = message.job
        assert job.webhook is not None  # only jobs with a webhook have messages
        at = datetime.fromtimestamp(message.created_at, UTC).isoformat().replace("+00:00", "Z")
        data = await run_in_threadpool(self.describe, job)
        body = {"type": message.type, "timestamp": at, "data": data}
        return await self.sender.send(message.id, job.webhook.url, json.dumps(body))

    def _next_attempt_at(self, message: Message, result: SendResult) -> float | None:
        is_last = message.num_attempts >= len(self.back_off_s)
        if result.error is None or result.is_gone or is_last:
            return None
        pause_s = self.back_off_s[message.num_attempts]
        return self.outbox.now() + pause_s * SystemRandom().uniform(1 - JITTER, 1 + JITTER)
