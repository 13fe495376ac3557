"""Replays by the engine of this process: background requests, which live ones delay."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from uuid import uuid4

from app.compare.replays import WHOLE, Dropped, Pair
from app.engine.async_engine import AsyncEngine, EngineStopped
from app.engine.grammar import ResponseFormatRefused
from app.engine.sampling.text import TextStream
from app.engine.scheduling.admission import Overloaded
from app.engine.scheduling.sequence import Request
from app.generation.engine_backend import EngineOutputStream
from app.generation.output import GenerationFailed, Output
from app.generation.request import Served
from app.models.entry import ModelEntry
from app.models.registry import ModelRegistry, ServedModel


class EngineReplays:
    def __init__(self, registry: ModelRegistry, engine: AsyncEngine) -> None:
        self._registry = registry
        self._engine = engine

    @property
    def is_busy(self) -> bool:
        return self._engine.is_busy

    async def find(self, entry: ModelEntry) -> ServedModel | None:
        """The counterpart, if its weights are loaded already."""
        if not entry.is_view or entry.base not in self._registry.weight_bytes():
            return None
        return await asyncio.wrap_future(await asyncio.to_thread(self._registry.begin, entry.name))

    async def outputs(self, pair: Pair, sides: Sequence[Served]) -> list[Output]:
        """The engine runs them one after the other."""
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
            await output.finish()
        except (GenerationFailed, ResponseFormatRefused):
            pair.drop("error")
        except EngineStopped:
            pair.drop("stopped")
        else:
            if output.output.finish_reason not in WHOLE:
                pair.drop("overload" if self._engine.is_accepting else "stopped")
