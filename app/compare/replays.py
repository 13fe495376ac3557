"""Replays of a live output in pairs, by the engine of this process and by vLLM.

Here they are background requests, which live ones delay. In vLLM they run one after the other,
while no server of this service has anything else to do.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from uuid import uuid4

from app.engine.async_engine import AsyncEngine, EngineStopped
from app.engine.grammar import ResponseFormatRefused
from app.engine.sampling.text import TextStream
from app.engine.scheduling.admission import Overloaded
from app.engine.scheduling.sequence import FinishReason, Request
from app.generation.engine_backend import EngineOutputStream
from app.generation.generator import Generation
from app.generation.output import CompletedOutput, GenerationFailed, Output
from app.generation.request import Served, ServedElsewhere
from app.generation.vllm_backend import VllmBackend
from app.models.entry import ModelEntry
from app.models.registry import ModelRegistry, ServedModel

WHOLE = (FinishReason.STOP, FinishReason.LENGTH)
QUIET_S = 0.2  # without a request, before a replay in vLLM begins
_POLL_S = 0.05


class Dropped(Exception):
    """The pair is dropped. ``args[0]`` is the reason for the metrics."""


@dataclass(eq=False)
class Pair:
    """The two replays of a live output."""

    live: CompletedOutput
    counterpart: Served | None = None  # None until it is found, and for a control
    cancels: list[Callable[[], object]] = field(default_factory=list)  # of replays that have begun
    drop_reason: str | None = None

    def is_of(self, is_meant: Callable[[Served], bool]) -> bool:
        own, other = self.live.served, self.counterpart
        return is_meant(own) or (other is not None and is_meant(other))

    def drop(self, reason: str) -> None:
        """End both replays."""
        self.drop_reason = self.drop_reason or reason
        for cancel in self.cancels:
            cancel()


class EngineReplays:
    """Replays in the engine of this process."""

    def __init__(self, registry: ModelRegistry, engine: AsyncEngine) -> None:
        self._registry = registry
        self._engine = engine

    @property
    def is_busy(self) -> bool:
        """Whether it computes anything, live requests and replays included."""
        return self._engine.is_busy

    async def find(self, entry: ModelEntry) -> ServedModel | None:
        """The counterpart, if its weights are loaded already."""
        if not entry.is_view or entry.base not in self._registry.weight_bytes():
            return None
        loading = await asyncio.to_thread(self._registry.begin, entry)
        return await asyncio.wrap_future(loading)

    async def outputs(self, pair: Pair, sides: Sequence[Served]) -> list[Output]:
        """The output of each side: the engine runs them one after the other, each prompt in full.

        Timings say whether nothing else ran there. Raises ``Dropped``.
        """
        models = [side for side in sides if isinstance(side, ServedModel)]
        self._check_warm(models)
        async with AsyncExitStack() as stack:
            outputs = []
            for model in models:
                outputs.append(self._begin(pair, model))
                stack.push_async_callback(outputs[-1].aclose)
            await asyncio.gather(*(self._finish(pair, output) for output in outputs))
        if pair.drop_reason is not None:
            raise Dropped(pair.drop_reason)
        self._check_warm(models)
        return [output.output for output in outputs]

    def _check_warm(self, models: Sequence[ServedModel]) -> None:
        if any(self._engine.is_warming_up(model.variant) for model in models):
            raise Dropped("warming_up")

    def _begin(self, pair: Pair, served: ServedModel) -> EngineOutputStream:
        live = pair.live
        request = Request(
            f"shadow-{uuid4().hex}",
            served.variant,
            tuple(live.prompt_ids),
            replace(live.request.params, num_logprobs=None, num_prompt_logprobs=None),
            is_background=True,
            grammar=live.grammar,  # they share a tokenizer
        )
        try:
            stream = self._engine.background(request)
        except Overloaded as error:
            raise Dropped("overload") from error
        except (EngineStopped, ValueError) as error:
            raise Dropped("stopped" if isinstance(error, EngineStopped) else "error") from error
        pair.cancels.append(stream.cancel)
        return EngineOutputStream(0, stream, TextStream(served.tokenizer, live.request.stop))

    async def _finish(self, pair: Pair, output: EngineOutputStream) -> None:
        """Wait for the end of a replay; one that is not whole ends the other."""
        try:
            await Generation([output]).finish()
        except (GenerationFailed, ResponseFormatRefused):
            pair.drop("error")
        except EngineStopped:
            pair.drop("stopped")
        else:
            if output.output.finish_reason not in WHOLE:
                pair.drop("overload" if self._engine.is_accepting else "stopped")


class VllmReplays:
    """All servers share one machine, so a pair has it alone. ``own`` are replays by its engine.

    vLLM cannot put a request aside, so a replay ends when a live request comes.
    """

    def __init__(self, backend: VllmBackend, own: EngineReplays) -> None:
        self._backend = backend
        self._own = own
        self._turn = asyncio.Lock()
        self._running: Pair | None = None
        backend.before_work = self._make_way

    @property
    def is_busy(self) -> bool:
        return self._running is not None or self._backend.is_busy

    async def find(self, entry: ModelEntry) -> ServedElsewhere | None:
        """The counterpart, if its server is ready: none is started for a replay."""
        return self._backend.ready(entry) if entry.is_view else None

    async def outputs(self, pair: Pair, sides: Sequence[Served]) -> list[Output]:
        """As in the engine of this process. Raises ``Dropped``."""
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
            [output] = await Generation([stream]).finish()
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


Replays = EngineReplays | VllmReplays
