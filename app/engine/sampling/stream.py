"""The events of one request: iterated over or sent to a subscriber, and cancelled when left."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

from app.engine.scheduling.sequence import FinishReason, Request, Timings, TokenEvent

OnEnd = Callable[[Request, TokenEvent], None]
Subscriber = Callable[[TokenEvent | Exception], None]


class Stream:
    """Events up to and including the last one. Leaving ``async with`` cancels the request.

    ``on_end`` is called with the last event of the request, even if the stream was left before.
    """

    def __init__(
        self,
        request: Request,
        cancel: Callable[["Stream", FinishReason], None],
        on_end: OnEnd | None = None,
    ) -> None:
        self.request = request
        self._cancel = cancel
        self._on_end = on_end
        self._events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        self._publish: Subscriber = self._events.put_nowait
        self._is_done = False

    @property
    def request_id(self) -> str:
        return self.request.request_id

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call the subscriber with each event, or the error of ``fail``, instead of iterating.

        Unlike an iteration, this takes no turn of the event loop per token.
        """
        while not self._events.empty():
            subscriber(self._events.get_nowait())
        self._publish = subscriber

    def put(self, event: TokenEvent) -> None:
        self._publish(event)
        if event.finish_reason is not None and self._on_end is not None:
            self._on_end(self.request, event)

    def fail(self, error: Exception) -> None:
        """End the stream without the engine: the iteration raises ``error``."""
        self._publish(error)
        if self._on_end is not None:
            timings = Timings(self.request.arrived_s, None, None, time.monotonic(), num_tokens=0)
            last = TokenEvent(self.request_id, None, FinishReason.ERROR, timings)
            self._on_end(self.request, last)

    def cancel(self, reason: FinishReason = FinishReason.ABORT) -> None:
        """End the request early. Its last event, with this reason and timings, still follows.

        Tokens that are already generated come before it.
        """
        if not self._is_done:
            self._cancel(self, reason)

    async def aclose(self) -> None:
        self.cancel()
        self._is_done = True
        self._publish = lambda _event: None

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> TokenEvent:
        if self._is_done:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
        except asyncio.CancelledError:  # the reader's task ends without closing the stream
            await self.aclose()
            raise
        if isinstance(event, Exception):
            self._is_done = True
            raise event
        self._is_done = event.finish_reason is not None
        return event

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()
