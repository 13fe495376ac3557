"""Replays by vLLM: one after the other, while no server of this service has anything else to do."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from app.compare.replays import WHOLE, Dropped, Pair, Replays
from app.generation.output import Output
from app.generation.request import Served, ServedElsewhere
from app.generation.vllm_backend import VllmBackend
from app.models.entry import ModelEntry

QUIET_S = 0.2  # without a request, before a replay begins
_POLL_S = 0.05


class VllmReplays:
    """All servers share one machine, so a pair has it alone. ``own`` are replays by its engine.

    vLLM cannot put a request aside, so a replay ends when a live request comes.
    """

    def __init__(self, backend: VllmBackend, own: Replays) -> None:
        self._backend = backend
        self._own = own
        self._turn = asyncio.Lock()
        self._running: Pair | None = None
        backend.before_work(self._make_way)

    @property
    def is_busy(self) -> bool:
        return self._running is not None or self._backend.is_busy

    async def find(self, entry: ModelEntry) -> ServedElsewhere | None:
        """The counterpart, if its server is ready: none is started for a replay."""
        return self._backend.ready(entry) if entry.is_view else None

    async def outputs(self, pair: Pair, sides: Sequence[Served]) -> list[Output]:
        async with self._turn:
            await self._quiet()
            self._running = pair
            try:
                return [await self._output(pair, side) for side in sides]
            finally:
                self._running = None

    async def _quiet(self) -> None:
        clock = asyncio.get_running_loop().time
        since_s = clock()
        while clock() - since_s < QUIET_S:
            if self._backend.is_busy or self._own.is_busy:
                since_s = clock()
            await asyncio.sleep(_POLL_S)

    async def _output(self, pair: Pair, side: Served) -> Output:
        if pair.drop_reason is not None:
            raise Dropped(pair.drop_reason)
        served = self._backend.ready(side.entry)
        if served is None:
            raise Dropped("unloaded")
        stream = self._backend.replay(pair.live, served)
        pair.cancels.append(stream.abort)
        try:
            output = await stream.finish()
        except RuntimeError as error:  # a ``BackendError``, or its client was closed meanwhile
            is_gone = self._backend.ready(side.entry) is None
            raise Dropped(pair.drop_reason or ("unloaded" if is_gone else "error")) from error
        finally:
            await stream.aclose()
        if pair.drop_reason is not None or output.finish_reason not in WHOLE:
            raise Dropped(pair.drop_reason or "error")
        return replace(output, timings=replace(output.timings, was_alone=True))

    def _make_way(self) -> None:
        if self._running is not None:
            self._running.drop("overload")
