"""Open background requests, as the event loop knows them: how many there may be, and their ends."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from app.engine.sequence import FinishReason, Request, Timings, TokenEvent
from app.engine.stream import Stream

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
