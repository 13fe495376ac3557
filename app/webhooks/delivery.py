"""Delivers the webhook messages of the outbox, on the event loop of an API process.

Any number of processes may do so at once: each claims what it delivers, and the claims of one that
dies run out.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from random import SystemRandom
from typing import Any

from fastapi.concurrency import run_in_threadpool

from app.webhooks.sender import Answer, WebhookSender
from pruning.jobs.job import Job
from pruning.jobs.outbox import DeliveryAttempt, Message, WebhookOutbox
from pruning.jobs.redis import JobStoreUnavailable

_MINUTE_S, _HOUR_S = 60.0, 3600.0
# between attempts, each up to a fifth shorter or longer: about two days altogether
BACK_OFF_S = (
    5.0,
    5 * _MINUTE_S,
    30 * _MINUTE_S,
    *(hours * _HOUR_S for hours in (2, 5, 10, 14, 20)),
)
JITTER = 0.2
MAX_AT_ONCE = 32
POLL_S = 1.0
OUTAGE_S = 10.0  # after which a job store that does not answer is asked again

logger = logging.getLogger(__name__)


class WebhookDeliverer:
    """``describe`` gives what a message says about a job, as JSON can."""

    def __init__(
        self,
        outbox: WebhookOutbox,
        sender: WebhookSender,
        describe: Callable[[Job], Mapping[str, Any]],
        *,
        back_off_s: Sequence[float] = BACK_OFF_S,
        poll_s: float = POLL_S,
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._describe = describe
        self._back_off_s = back_off_s
        self._poll_s = poll_s
        self._random = SystemRandom()
        self._is_stopping = asyncio.Event()
        self._loop: asyncio.Task[None] | None = None
        self._deliveries: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Deliver what is due from now on."""
        self._loop = asyncio.create_task(self._run())

    async def stop(self, patience_s: float) -> None:
        """Claim no more, and give what is on its way so long to arrive.

        What has not arrived by then is delivered, perhaps once more, when its claim has run out.
        """
        self._is_stopping.set()
        if self._loop is not None:
            await self._loop
        if self._deliveries:
            await asyncio.wait(self._deliveries, timeout=patience_s)
        for delivery in self._deliveries:
            delivery.cancel()
        await asyncio.gather(*self._deliveries, return_exceptions=True)
        self._sender.close()

    async def claim_due(self) -> Sequence[asyncio.Task[None]]:
        """Begin to deliver what is due, as far as there is room."""
        room = MAX_AT_ONCE - len(self._deliveries)
        messages = await run_in_threadpool(self._outbox.claim, room)
        begun = [asyncio.create_task(self._deliver(message)) for message in messages]
        self._deliveries.update(begun)
        for delivery in begun:
            delivery.add_done_callback(self._deliveries.discard)
        return begun

    async def _run(self) -> None:
        while not self._is_stopping.is_set():
            pause_s = self._poll_s
            try:
                await self.claim_due()
            except JobStoreUnavailable as error:
                logger.warning("webhook messages wait: %s", error)
                pause_s = OUTAGE_S
            except Exception:
                logger.exception("webhook messages wait for one that cannot be read")
                pause_s = OUTAGE_S
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_stopping.wait(), pause_s)

    async def _deliver(self, message: Message) -> None:
        at, began = self._outbox.now(), time.monotonic()
        try:
            answer = await self._send(message)
        except Exception:
            logger.exception("webhook message %s cannot be sent", message.id)
            answer = Answer(None, "a defect of this service, whose log says more")
        attempt = DeliveryAttempt(
            message_id=message.id,
            type=message.type,
            number=message.num_attempts + 1,
            at=at,
            duration_s=time.monotonic() - began,
            response_status=answer.status,
            error=answer.error,
            next_attempt_at=self._next_attempt_at(message, answer),
        )
        if attempt.error is not None:
            is_last = attempt.next_attempt_at is None
            level, fate = (logging.WARNING, "given up") if is_last else (logging.INFO, "kept")
            logger.log(level, "webhook message %s is %s: %s", message.id, fate, answer.error)
        try:
            await run_in_threadpool(self._outbox.settle, message, attempt)
        except JobStoreUnavailable as error:
            logger.warning("webhook message %s may be delivered twice: %s", message.id, error)

    async def _send(self, message: Message) -> Answer:
        job = message.job
        assert job.webhook is not None  # or there would be no message
        at = datetime.fromtimestamp(message.created_at, UTC).isoformat().replace("+00:00", "Z")
        body = {"type": message.type, "timestamp": at, "data": self._describe(job)}
        return await self._sender.send(message.id, job.webhook.url, json.dumps(body))

    def _next_attempt_at(self, message: Message, answer: Answer) -> float | None:
        is_last = message.num_attempts >= len(self._back_off_s)
        if answer.error is None or answer.is_gone or is_last:
            return None
        pause_s = self._back_off_s[message.num_attempts]
        return self._outbox.now() + pause_s * self._random.uniform(1 - JITTER, 1 + JITTER)
