"""The engine behind asyncio: starts and watches the thread that steps it, streams, and drains.

The engine decides what is generated and in which order, and ``Admission`` which requests enter.
"""

import asyncio
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from app.engine.engine import Engine, EngineStats
from app.engine.engine_loop import Cancel, EngineThread, Work
from app.engine.kernels.warm_up import State
from app.engine.sampling.stream import OnEnd, Stream
from app.engine.scheduling.admission import Admission, Overloaded
from app.engine.scheduling.sequence import FinishReason, Request, RequestRefused, TokenEvent
from app.engine.variant import Variant
from pruning.plural import counted

_Result = TypeVar("_Result")


class EngineStopped(RuntimeError):
    """The engine takes no requests: it is not started, draining, stopped, or has crashed."""


class StillWarmingUp(RuntimeError):
    """Kernels of a variant are still compiled or chosen, so its times mean nothing yet."""

    retry_after_s = 10.0

    def __init__(self, variants: Collection[Variant], limit_s: float) -> None:
        names = ", ".join(sorted({variant.name for variant in variants}))
        super().__init__(
            f"kernels of {names} are still being compiled or selected after {limit_s:.0f} "
            "s, so timings would be unreliable: retry later"
        )


class AsyncEngine:
    """Owns an engine and the thread that steps it. Bound to the event loop that starts it."""

    def __init__(
        self,
        engine: Engine,
        max_waiting: int,
        *,
        max_waiting_tokens: int = 131_072,
        stall_s: float = 120.0,
    ) -> None:
        self._engine = engine
        self._thread = EngineThread(engine)
        self.admission = Admission(engine.limits.max_num_seqs + max_waiting, max_waiting_tokens)
        self._stall_s = stall_s
        self._streams: dict[str, Stream] = {}  # open requests, from admission to last event
        self._works: dict[Future[Any], Variant] = {}
        self._background: dict[str, Stream] = {}
        self._stats = engine.stats()
        self._drained = asyncio.Event()
        self._stepped = asyncio.Event()  # set after each step
        self.is_accepting = False  # of requests: from ``start`` to ``stop``, unless it crashes

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs: from ``start`` to ``stop``, unless it crashes."""
        return self._thread.is_alive

    @property
    def is_busy(self) -> bool:
        """Whether it has any request or work, background requests included."""
        return bool(self._streams or self._works or self._background)

    @property
    def stalled_s(self) -> float:
        """Seconds since a step has ended, while there is work; 0 while there is none."""
        has_work = self._streams or self._works
        return time.monotonic() - self._thread.moved_s if has_work else 0.0

    @property
    def fault(self) -> str | None:
        """A failure that needs a restart, None for a healthy engine."""
        if not self.is_alive:
            return "the engine thread has stopped: restart the process"
        if (stalled_s := self.stalled_s) > self._stall_s:
            return (
                f"no engine step has finished for {stalled_s:.0f} s, more than the limit of "
                f"{self._stall_s:g} s: restart the process"
            )
        return None

    def stats(self) -> EngineStats:
        """The statistics of the engine after its latest step."""
        return self._stats

    @property
    def max_chunk(self) -> int:
        """The maximum of prompt tokens in one step."""
        return self._engine.limits.max_batch_tokens

    def max_len(self, variant: Variant) -> int:
        """The maximum of prompt and generated tokens of a request for this variant."""
        return self._engine.max_len(variant)

    def num_open(self, variants: Collection[Variant]) -> int:
        """The number of open requests and works on these variants, background requests excluded."""
        requests = sum(stream.request.variant in variants for stream in self._streams.values())
        return requests + sum(variant in variants for variant in self._works.values())

    def start(self) -> None:
        """Start the thread. Raises ``RuntimeError`` outside of an event loop or if it runs."""
        crashed = EngineStopped("the engine crashed: see the service log")
        self._thread.start(self._deliver, lambda: self._fail(crashed))
        self._drained.set()
        self.is_accepting = True

    async def stop(self, drain_s: float = 0.0) -> None:
        """Refuse new requests, let open ones finish for up to ``drain_s``, abort the rest.

        A thread that is stuck in a step is abandoned: it ends with the process.
        """
        self.is_accepting = False
        if not self._thread.is_started:
            return
        self._drop_background()
        with suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                await self._drained.wait()
        for request_id in self._streams:
            self._thread.put(Cancel(request_id, FinishReason.ABORT))
        await self._thread.stop()
        self._fail(EngineStopped("the engine was stopped during a step"))

    def stream(self, request: Request, on_end: OnEnd | None = None) -> Stream:
        """Hand a request to the engine: ``async with engine.stream(request) as events``.

        Raises as ``streams`` does.
        """
        return self.streams([request], on_end)[0]

    def check(self, requests: Sequence[Request]) -> None:
        """Raise ``RequestRefused`` for requests that could never run, or ``EngineStopped``."""
        if not self.is_accepting:
            raise EngineStopped("the engine is not accepting requests: it is stopping or stopped")
        for request in requests:
            self._engine.check(request)

    def streams(self, requests: Sequence[Request], on_end: OnEnd | None = None) -> list[Stream]:
        """Hand all of these requests to the engine, or none.

        Raises ``RequestRefused``, ``Overloaded`` or ``EngineStopped`` at once, before any event.
        If the engine crashes later, the iterations raise ``EngineStopped``. ``on_end`` is called
        once per request with its last event, even if the stream was left before.
        """
        self.check(requests)
        for request in requests:
            if request.request_id in self._streams:
                raise RequestRefused(f"request {request.request_id} is already open")
        self.admission.admit(requests)
        self._begin()
        streams = [Stream(request, self._cancel, on_end) for request in requests]
        self._streams |= {stream.request_id: stream for stream in streams}
        if self._is_overloaded:
            self._drop_background()
        for request in requests:
            self._thread.put(request)
        return streams

    async def run(self, increments: Generator[None, None, _Result], variant: Variant) -> _Result:
        """The result of a generator that the engine's thread advances once after each step.

        Cancelling the wait ends it. Raises its exceptions, or ``EngineStopped``.
        """
        if not self.is_accepting:
            raise EngineStopped("the engine is not accepting work: it is stopping or stopped")
        self._begin()
        work = Work(increments)
        self._works[work.future] = variant
        self._thread.put(work)
        try:
            return await asyncio.wrap_future(work.future)
        finally:
            self._works.pop(work.future, None)
            self._end()

    def prepare(self, variant: Variant) -> None:
        """Make what steps of this variant need. Safe from any thread, such as one that loads."""
        self._engine.prepare(variant)
        self._thread.wake()

    def kernels_digest(self, *, is_reproducible: bool) -> str:
        """A digest of what outputs depend on beside weights and requests."""
        is_reproducible = is_reproducible or self._engine.is_reproducible
        return self._engine.kernels.digest(is_reproducible=is_reproducible)

    async def warmed_up(self, variants: Collection[Variant], limit_s: float) -> None:
        """Wait until steps of these variants run as they will. Raises ``StillWarmingUp``."""
        for variant in variants:
            self.prepare(variant)
        try:
            async with asyncio.timeout(limit_s):
                while any(map(self.is_warming_up, variants)) and self.is_alive:
                    self._stepped.clear()
                    await self._stepped.wait()
        except TimeoutError as error:
            raise StillWarmingUp(variants, limit_s) from error

    @contextmanager
    def keeping_kernels(self) -> Iterator[None]:
        """Time the kernels of no model again meanwhile: comparisons need the same ones throughout.

        Models that were never timed still are.
        """
        try:
            with self._engine.kernels.warm_up.held():
                yield
        finally:
            self._thread.wake()  # it may sleep, although models are due

    def is_warming_up(self, variant: Variant) -> bool:
        """Whether kernels of this variant are still compiled or chosen."""
        return self._engine.kernels.warm_up.is_warming_up(variant)

    @property
    def kernels_state(self) -> State:
        """What is done for the kernels of loaded models now."""
        return self._engine.kernels.warm_up.state

    def background(self, request: Request) -> Stream:
        """Hand over a background request, which takes steps only while there is no other work.

        It ends with ABORT when live requests wait until others end, and when the engine stops.
        It counts towards no limit. Raises ``RequestRefused``, ``EngineStopped``, and ``Overloaded``
        while live requests wait until others end.
        """
        if not self.is_accepting:
            raise EngineStopped("the engine is not accepting requests: it is stopping or stopped")
        assert request.is_background
        assert request.deadline_s is None
        self._engine.check(request)
        if self._is_overloaded:
            what = f"{counted(len(self._streams), 'request')} running or waiting"
            raise Overloaded(what, "queue_full", 1.0)
        stream = self._background[request.request_id] = Stream(request, self._cancel)
        self._thread.put(request)
        return stream

    @property
    def _is_overloaded(self) -> bool:
        """Whether more live requests are open than may run."""
        return len(self._streams) > self._engine.limits.max_num_seqs

    def _drop_background(self) -> None:
        for stream in self._background.values():
            stream.cancel()

    def _open(self, request_id: str) -> dict[str, Stream]:
        return self._background if request_id in self._background else self._streams

    def _begin(self) -> None:
        if not self._streams and not self._works:
            self._thread.moved_s = time.monotonic()
            self._drained.clear()

    def _end(self) -> None:
        if not self._streams and not self._works:
            self._drained.set()

    def _cancel(self, stream: Stream, reason: FinishReason) -> None:
        if self._open(stream.request_id).get(stream.request_id) is stream:
            self._thread.put(Cancel(stream.request_id, reason))

    def _deliver(self, events: list[TokenEvent], stats: EngineStats, busy_s: float) -> None:
        if not self._thread.is_started:
            return  # an abandoned thread
        self._stats = stats
        self._stepped.set()
        live = [event for event in events if event.request_id in self._streams]
        self.admission.take(live, busy_s)
        for event in events:
            streams = self._open(event.request_id)
            streams[event.request_id].put(event)
            if event.finish_reason is not None:
                del streams[event.request_id]
        self._end()

    def _fail(self, error: EngineStopped) -> None:
        self.is_accepting = False
        for streams in (self._streams, self._background):
            for stream in streams.values():
                stream.fail(error)
            streams.clear()
        for future in self._works:
            if not future.done():
                future.set_exception(error)
        self._works.clear()
        self._drained.set()
