"""The engine behind asyncio: the one thread that steps it, admission control, and draining.

Knows when to refuse and how to end. What is generated, and in which order, is the engine's affair.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from contextlib import suppress
from typing import Final

from app.engine.engine import DuplicateRequest, Engine, EngineStats
from app.engine.sequence import Request, TokenEvent
from app.engine.stream import Stream

logger = logging.getLogger(__name__)

_PACE_WINDOW = 32  # finished requests that the pace is taken from
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0


class Overloaded(RuntimeError):
    """No more requests may wait; ``retry_after_s`` is when the line should have emptied."""

    def __init__(self, num_waiting: int, retry_after_s: float) -> None:
        super().__init__(
            f"{num_waiting} requests are waiting, and no more may: retry in {retry_after_s:.0f} s"
        )
        self.retry_after_s = retry_after_s


class EngineStopped(RuntimeError):
    """The engine takes nothing: not started, draining, stopped, or its thread has died."""


class AsyncEngine:
    """Owns an engine and the thread that steps it. Belongs to the event loop it is started in."""

    def __init__(self, engine: Engine, max_waiting: int) -> None:
        self._engine = engine
        self.max_open: Final = engine.limits.max_num_seqs + max_waiting
        self._commands: queue.SimpleQueue[Request | str | None] = queue.SimpleQueue()
        self._streams: dict[str, Stream] = {}  # open requests, from admission to last event
        self._stats = engine.stats()
        self._finished_s: deque[float] = deque(maxlen=_PACE_WINDOW)
        self._drained = asyncio.Event()
        self._is_accepting = False
        self._has_failed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs: from ``start`` to ``stop``, unless it crashes."""
        return self._thread is not None and self._thread.is_alive() and not self._has_failed

    def stats(self) -> EngineStats:
        """The engine's figures after its latest step."""
        return self._stats

    def start(self) -> None:
        """Start the thread. Raises ``RuntimeError`` outside of an event loop or if it runs."""
        if self._thread is not None:
            raise RuntimeError("the engine is started already")
        self._loop = asyncio.get_running_loop()
        self._drained.set()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()
        self._is_accepting = True

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, let open ones finish for up to ``drain_s``, abort the rest."""
        self._is_accepting = False
        if self._thread is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._drained.wait()
        for request_id in self._streams:
            self._commands.put(request_id)
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)
        self._thread = None

    def stream(self, request: Request) -> Stream:
        """Hand a request to the engine: ``async with engine.stream(request) as events``.

        Raises ``RequestRefused``, ``Overloaded`` or ``EngineStopped`` at once, before any event.
        Should the engine crash later, the iteration raises ``EngineStopped``.
        """
        if not self._is_accepting:
            raise EngineStopped("the engine is not taking requests: it is stopping or has stopped")
        self._engine.check(request)
        if request.request_id in self._streams:
            raise DuplicateRequest(f"request {request.request_id} is open already")
        if len(self._streams) >= self.max_open:
            num_waiting = len(self._streams) - self._stats.num_running
            raise Overloaded(num_waiting, self._retry_after_s(num_waiting))
        stream = Stream(request.request_id, self._cancel)
        self._streams[request.request_id] = stream
        self._drained.clear()
        self._commands.put(request)
        return stream

    def _cancel(self, stream: Stream) -> None:
        if self._streams.get(stream.request_id) is stream:
            self._commands.put(stream.request_id)

    def _retry_after_s(self, num_waiting: int) -> float:
        if len(self._finished_s) < 2:
            return _MIN_RETRY_S
        pace_s = (time.monotonic() - self._finished_s[0]) / len(self._finished_s)
        return min(max(num_waiting * pace_s, _MIN_RETRY_S), _MAX_RETRY_S)

    def _deliver(self, events: list[TokenEvent], stats: EngineStats) -> None:
        self._stats = stats
        for event in events:
            self._streams[event.request_id].put(event)
            if event.finish_reason is not None:
                del self._streams[event.request_id]
                self._finished_s.append(time.monotonic())
        if not self._streams:
            self._drained.set()

    def _fail(self) -> None:
        self._is_accepting = False
        for stream in self._streams.values():
            stream.put(EngineStopped("the engine has crashed; its log says why"))
        self._streams.clear()
        self._drained.set()

    # What follows runs in the thread; only it touches the engine.

    def _serve(self) -> None:
        assert self._loop is not None
        try:
            is_running = True
            while is_running:
                events, is_running = self._obey()
                events += self._engine.step()
                self._loop.call_soon_threadsafe(self._deliver, events, self._engine.stats())
        except Exception:
            self._has_failed = True
            logger.exception("the engine thread has died")
            with suppress(RuntimeError):  # the event loop may be what is gone
                self._loop.call_soon_threadsafe(self._fail)

    def _obey(self) -> tuple[list[TokenEvent], bool]:
        """Carry out what was asked since the last step; waits for it while there is no work.

        Returns the events of what was cancelled, and whether to go on.
        """
        events: list[TokenEvent] = []
        must_wait = not self._engine.has_work
        while must_wait or not self._commands.empty():
            must_wait = False
            command = self._commands.get()
            if command is None:
                return events, False
            if isinstance(command, Request):
                self._engine.add(command)
            elif event := self._engine.cancel(command):
                events.append(event)
        return events, True
