"""The events of one request, as an asynchronous iterator that ends what it no longer wants."""

import asyncio
from collections.abc import Callable
from types import TracebackType

from app.engine.sequence import TokenEvent


class Stream:
    """Events up to and with the last one. Leaving ``async with`` cancels what still runs."""

    def __init__(self, request_id: str, cancel: Callable[["Stream"], None]) -> None:
        self.request_id = request_id
        self._cancel = cancel
        self._events: asyncio.Queue[TokenEvent | Exception] = asyncio.Queue()
        self._is_done = False

    def put(self, event: TokenEvent | Exception) -> None:
        self._events.put_nowait(event)

    def cancel(self) -> None:
        """End the request early; the last event is still to come: an ABORT with timings.

        Tokens that were on their way come before it.
        """
        if not self._is_done:
            self._cancel(self)

    async def aclose(self) -> None:
        self.cancel()
        self._is_done = True

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
