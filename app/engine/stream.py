"""The events of one request, iterated over or listened to, and its end if nobody wants it.

Open background requests, as the event loop knows them: how many there may be, and their ends.
"""

import asyncio
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import TYPE_CHECKING

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
        self.was_alone = True  # whether no other request was open beside it
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


if TYPE_CHECKING:
    from app.engine.variant import Variant

MAX_BACKGROUND = 8


class BackgroundBusy(RuntimeError):
    """As many background requests as there may be are open."""


class BackgroundStream(Stream):
    """The events of a request that runs only while no other does."""

    def __init__(self, request: Request, cancel: Callable[[Stream, FinishReason], None]) -> None:
        super().__init__(request, cancel)
        self.why_dropped: str | None = None  # if the service itself has ended it
        self.was_alone = False  # known at its end: nothing else has run since its first step


class Background:
    """Everybody else comes first: these are never waited for, and dropped for any reason."""

    def __init__(self) -> None:
        self._streams: dict[str, BackgroundStream] = {}
        self._quiet_since_s = 0.0  # when a request that is not of these has ended last

    @property
    def num_open(self) -> int:
        return len(self._streams)

    def open(
        self, request: Request, cancel: Callable[[Stream, FinishReason], None]
    ) -> BackgroundStream:
        """Raises ``BackgroundBusy``."""
        if len(self._streams) >= MAX_BACKGROUND:
            raise BackgroundBusy(f"{len(self._streams)} background requests are open: no more may")
        stream = BackgroundStream(request, cancel)
        self._streams[request.request_id] = stream
        return stream

    def holds(self, stream: Stream) -> bool:
        return self._streams.get(stream.request_id) is stream

    def note_end(self, moment_s: float) -> None:
        """Something else has used the engine until then."""
        self._quiet_since_s = max(self._quiet_since_s, moment_s)

    def deliver(self, event: TokenEvent, others: Collection[Stream]) -> bool:
        """Whether the event was for one of these; ``others`` are what is open besides."""
        if (stream := self._streams.get(event.request_id)) is None:
            return False
        if event.finish_reason is not None:
            assert event.timings is not None
            stream.was_alone = self._was_alone(event.timings, others)
            del self._streams[event.request_id]
        stream.put(event)
        return True

    def drop(self, why: str, variants: Collection["Variant"] | None = None) -> None:
        """End all of them, or those of these variants."""
        for stream in self._streams.values():
            if variants is None or stream.request.variant in variants:
                stream.why_dropped = stream.why_dropped or why
                stream.cancel()

    def fail(self, error: Exception) -> None:
        for stream in self._streams.values():
            stream.fail(error)
        self._streams.clear()

    def _was_alone(self, timings: Timings, others: Collection[Stream]) -> bool:
        if timings.scheduled_s is None or self._quiet_since_s > timings.scheduled_s:
            return False
        return all(other.request.arrived_s >= timings.finished_s for other in others)
