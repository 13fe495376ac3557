"""The events of one request, iterated over or listened to, and its end if nobody wants it."""

import asyncio
import time
from collections.abc import Callable
from types import TracebackType

from app.engine.sequence import FinishReason, Request, Timings, TokenEvent

OnEnd = Callable[[Request, TokenEvent], None]
Listener = Callable[[TokenEvent | Exception], None]


class Stream:
    """Events up to and with the last one. Leaving ``async with`` cancels what still runs.

    ``on_end`` is told the last event of every request, whether anybody still reads or not.
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
        self._hear: Listener = self._events.put_nowait
        self._is_done = False

    @property
    def request_id(self) -> str:
        return self.request.request_id

    def tell(self, listener: Listener) -> None:
        """Call it with each event, or what ``fail`` is told, in place of the iteration.

        A token costs its reader no turn of the event loop then.
        """
        while not self._events.empty():
            listener(self._events.get_nowait())
        self._hear = listener

    def put(self, event: TokenEvent) -> None:
        self._hear(event)
        if event.finish_reason is not None and self._on_end is not None:
            self._on_end(self.request, event)

    def fail(self, error: Exception) -> None:
        """End it without the engine: the iteration raises ``error``."""
        self._hear(error)
        if self._on_end is not None:
            timings = Timings(self.request.arrived_s, None, None, time.monotonic(), num_tokens=0)
            last = TokenEvent(self.request_id, None, FinishReason.ERROR, timings)
            self._on_end(self.request, last)

    def cancel(self, reason: FinishReason = FinishReason.ABORT) -> None:
        """End the request early; the last event is still to come, with that reason and timings.

        Tokens that were on their way come before it.
        """
        if not self._is_done:
            self._cancel(self, reason)

    async def aclose(self) -> None:
        self.cancel()
        self._is_done = True
        self._hear = _ignore

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> TokenEvent:
        if self._is_done:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
        except asyncio.CancelledError:  # the reader's task is going, so nobody will close this
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


def _ignore(_event: TokenEvent | Exception) -> None:
    """Nobody wants it any more."""
