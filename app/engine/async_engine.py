"""The engine behind asyncio: the one thread that steps it, what watches that thread, and draining.

Knows how to begin, to end, and to tell that it is stuck. What is generated, and in which order, is
the engine's affair; who may come in is admission's.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from app.engine.admission import Admission
from app.engine.engine import DuplicateRequest, Engine, EngineStats
from app.engine.sequence import FinishReason, Request, TokenEvent
from app.engine.stream import OnEnd, Stream
from app.engine.variants import Variant

logger = logging.getLogger(__name__)

_JOIN_S = 10.0  # for the step that runs when the engine is stopped


class EngineStopped(RuntimeError):
    """The engine takes nothing: not started, draining, stopped, or its thread has died."""


@dataclass(frozen=True)
class _Cancel:
    request_id: str
    reason: FinishReason


class AsyncEngine:
    """Owns an engine and the thread that steps it. Belongs to the event loop it is started in."""

    def __init__(
        self,
        engine: Engine,
        max_waiting: int,
        *,
        max_waiting_tokens: int = 131_072,
        stall_s: float = 120.0,
    ) -> None:
        self._engine = engine
        self._admission = Admission(engine.limits.max_num_seqs + max_waiting, max_waiting_tokens)
        self._stall_s = stall_s
        self._commands: queue.SimpleQueue[Request | _Cancel | None] = queue.SimpleQueue()
        self._streams: dict[str, Stream] = {}  # open requests, from admission to last event
        self._stats = engine.stats()
        self._moved_s = time.monotonic()  # when a step ended last, or work came after none
        self._drained = asyncio.Event()
        self._is_accepting = False
        self._has_failed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs: from ``start`` to ``stop``, unless it crashes."""
        return self._thread is not None and self._thread.is_alive() and not self._has_failed

    @property
    def stalled_s(self) -> float:
        """Seconds since a step has ended, while there is work; 0 while there is none."""
        return time.monotonic() - self._moved_s if self._streams else 0.0

    @property
    def ailment(self) -> str | None:
        """What only a restart can mend; None for an engine that is well."""
        if not self.is_alive:
            return "the engine's thread has ended: restart"
        if (stalled_s := self.stalled_s) > self._stall_s:
            return (
                f"the engine has work, but no step has ended for {stalled_s:.0f} s, where "
                f"{self._stall_s:g} s are allowed: restart"
            )
        return None

    def stats(self) -> EngineStats:
        """The engine's figures after its latest step."""
        return self._stats

    def check_number(self, num_requests: int) -> None:
        """Raise ``TooManyPrompts`` for more than are ever taken at once."""
        self._admission.check_number(num_requests)

    def max_len(self, variant: Variant) -> int:
        """Tokens of prompt and answer that a request for this variant may have."""
        return self._engine.max_len(variant)

    def num_open(self, variants: Collection[Variant]) -> int:
        """Requests for these, from their admission to their last event."""
        return sum(stream.request.variant in variants for stream in self._streams.values())

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
        """Refuse new requests, let open ones finish for up to ``drain_s``, abort the rest.

        A thread that is stuck in a step is left behind: it ends with the process.
        """
        self._is_accepting = False
        if self._thread is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._drained.wait()
        for request_id in self._streams:
            self._commands.put(_Cancel(request_id, FinishReason.ABORT))
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, _JOIN_S)
        if self._thread.is_alive():
            logger.error("a step of the engine has not ended for %.0f s: left behind", _JOIN_S)
        self._thread = None
        self._fail(EngineStopped("the engine has stopped in the middle of a step"))

    def stream(self, request: Request, on_end: OnEnd | None = None) -> Stream:
        """Hand a request to the engine: ``async with engine.stream(request) as events``.

        Raises as ``streams`` does.
        """
        return self.streams([request], on_end)[0]

    def streams(self, requests: Sequence[Request], on_end: OnEnd | None = None) -> list[Stream]:
        """Hand over all of these requests, or none: half an answer would be of no use.

        Raises ``RequestRefused``, ``Overloaded`` or ``EngineStopped`` at once, before any event.
        Should the engine crash later, the iterations raise ``EngineStopped``. ``on_end`` is called
        once per request with its last event, even if the stream was left before it.
        """
        if not self._is_accepting:
            raise EngineStopped("the engine is not taking requests: it is stopping or has stopped")
        for request in requests:
            self._engine.check(request)
            if request.request_id in self._streams:
                raise DuplicateRequest(f"request {request.request_id} is open already")
        self._admission.admit(requests)
        if not self._streams:
            self._moved_s = time.monotonic()
            self._drained.clear()
        streams = [Stream(request, self._cancel, on_end) for request in requests]
        self._streams |= {stream.request_id: stream for stream in streams}
        for request in requests:
            self._commands.put(request)
        return streams

    def _cancel(self, stream: Stream, reason: FinishReason) -> None:
        if self._streams.get(stream.request_id) is stream:
            self._commands.put(_Cancel(stream.request_id, reason))

    def _deliver(self, events: list[TokenEvent], stats: EngineStats, busy_s: float) -> None:
        if self._thread is None:
            return  # left behind, with nobody to tell
        self._stats = stats
        self._admission.take(events, busy_s)
        for event in events:
            self._streams[event.request_id].put(event)
            if event.finish_reason is not None:
                del self._streams[event.request_id]
        if not self._streams:
            self._drained.set()

    def _fail(self, error: EngineStopped) -> None:
        self._is_accepting = False
        for stream in self._streams.values():
            stream.fail(error)
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
                began_s, self._moved_s = self._moved_s, time.monotonic()
                self._loop.call_soon_threadsafe(
                    self._deliver, events, self._engine.stats(), self._moved_s - began_s
                )
        except Exception:
            self._has_failed = True
            logger.exception("the engine thread has died")
            crash = EngineStopped("the engine has crashed; its log says why")
            with suppress(RuntimeError):  # the event loop may be what is gone
                self._loop.call_soon_threadsafe(self._fail, crash)

    def _obey(self) -> tuple[list[TokenEvent], bool]:
        """Carry out what was asked since the last step; waits for it while there is no work.

        Returns the events of what was cancelled, and whether to go on.
        """
        events: list[TokenEvent] = []
        if must_wait := not self._engine.has_work:
            self._engine.check_integrity()  # costs nothing now: an idle engine holds no cache
        while must_wait or not self._commands.empty():
            command = self._commands.get()
            if must_wait:
                must_wait, self._moved_s = False, time.monotonic()
            if command is None:
                return events, False
            if isinstance(command, Request):
                self._engine.add(command)
            elif event := self._engine.cancel(command.request_id, command.reason):
                events.append(event)
        return events, True
