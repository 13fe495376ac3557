"""Shadow traffic: live requests replayed on another variant while the engine is idle.

A replay begins when its live output is complete and runs as a background request of the engine,
which delays a live request by one step at most. Under load, replays are dropped first.
"""

import asyncio
import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from uuid import uuid4

from app.compare.compare import token_agreement
from app.config import ServeSettings
from app.engine.admission import Overloaded
from app.engine.async_engine import AsyncEngine, EngineStopped
from app.engine.grammar import ResponseFormatRefused
from app.engine.scheduler import BACKGROUND_CHUNK
from app.engine.sequence import FinishReason, Request
from app.engine.stream import Stream
from app.engine.text import TextStream
from app.engine.variant import Variant
from app.generation.engine_backend import CompletedOutput, EngineBackend, EngineOutputStream
from app.generation.output import GenerationFailed
from app.metrics.metrics import Metrics, labels_of
from app.metrics.shadow import ShadowMetrics, ShadowSide
from app.models.catalog import UnknownModel
from app.models.entry import ModelEntry
from app.models.registry import ModelRegistry, ServedModel
from pruning.models.names import VariantName

MAX_REPLAYS = 8

_WHOLE = (FinishReason.STOP, FinishReason.LENGTH)


class _Dropped(Exception):
    """The replay is dropped. ``args[0]`` is the reason for the metrics."""


@dataclass(eq=False)
class _Replay:
    live: CompletedOutput
    variant: Variant | None = None  # None until it is found
    stream: Stream | None = None  # None until the engine has the request
    drop_reason: str | None = None


class Shadow:
    """Replays a ``share``, 0 to 1, of the completed outputs.

    With ``direction`` "dense", requests to pruned variants are replayed on their dense model. With
    the name of a variant, requests to its dense model are replayed on that variant. ``@-6`` stands
    for that variant of every dense model.
    """

    def __init__(
        self,
        share: float,
        direction: str,
        registry: ModelRegistry,
        engine: AsyncEngine,
        metrics: Metrics,
        counts: ShadowMetrics,
    ) -> None:
        self._share = share
        self._direction = direction
        self._registry = registry
        self._engine = engine
        self._metrics = metrics
        self._counts = counts
        self._random = random.Random()  # noqa: S311 - no secret
        self._replays: dict[asyncio.Task[None], _Replay] = {}

    def consider(self, live: CompletedOutput) -> None:
        """Begin a replay of this request, or drop it. Does not delay the live request."""
        name = self._counterpart(live.served.entry)
        is_whole = live.output.finish_reason in _WHOLE and live.output.num_tokens > 0
        if name is None or not is_whole or live.request.traffic != "live":
            return
        if self._random.random() >= self._share:
            return
        params = live.stream.request.params
        if not params.is_greedy and params.seed is None:
            self._drop(live, "unseeded")  # its own repetition would differ
        elif not live.served.entry.is_view:
            self._drop(live, "no_counterpart")  # has its own weights, so its parent may differ
        elif len(self._replays) >= MAX_REPLAYS:
            self._drop(live, "busy")
        else:
            replay = _Replay(live)
            task = asyncio.create_task(self._run(replay, name))
            self._replays[task] = replay
            task.add_done_callback(self._replays.pop)

    async def forget(self, variants: Collection[Variant]) -> None:
        """Drop the replays on these variants, and wait until none holds a variant."""
        tasks = []
        for task, replay in self._replays.items():
            is_early = replay.variant is None and replay.live.served.variant in variants
            if is_early:
                self._drop(replay.live, "unloaded")
                task.cancel()
            if is_early or replay.variant in variants:
                tasks.append(task)
            if replay.variant in variants and replay.stream is not None:
                replay.drop_reason = "unloaded"
                replay.stream.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def aclose(self) -> None:
        """Drop all replays."""
        for task in (tasks := list(self._replays)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _counterpart(self, entry: ModelEntry) -> str | None:
        """The model on which requests to this one are replayed, None if they are not."""
        if self._direction == "dense":
            return entry.parent
        variant = VariantName.parse(self._direction)
        is_meant = not entry.is_pruned and variant.model in ("", entry.name)
        return str(replace(variant, model=entry.name)) if is_meant else None

    async def _run(self, replay: _Replay, name: str) -> None:
        try:
            served = await self._find(name)
            replay.variant = served.variant
            await self._replay(replay, served)
        except _Dropped as dropped:
            self._drop(replay.live, str(dropped))

    async def _find(self, name: str) -> ServedModel:
        """The counterpart, if its weights are loaded already."""
        try:
            entry = await asyncio.to_thread(self._registry.catalog.resolve, name)
            if not entry.is_view or entry.base not in self._registry.weight_bytes():
                raise _Dropped("no_counterpart")
            return await asyncio.wrap_future(await asyncio.to_thread(self._registry.begin, name))
        except UnknownModel as error:
            raise _Dropped("no_counterpart") from error
        except (RuntimeError, ValueError, OSError) as error:  # of the model's files
            raise _Dropped("error") from error

    async def _replay(self, replay: _Replay, served: ServedModel) -> None:
        live = replay.live
        original = live.stream.request
        request = Request(
            f"shadow-{uuid4().hex}",
            served.variant,
            original.prompt_ids,
            replace(original.params, num_logprobs=None, num_prompt_logprobs=None),
            is_background=True,
            grammar=original.grammar,  # they share a tokenizer
        )
        try:
            stream = replay.stream = self._engine.background(request)
        except Overloaded as error:
            raise _Dropped("overload") from error
        except (EngineStopped, ValueError) as error:
            raise _Dropped("stopped" if isinstance(error, EngineStopped) else "error") from error
        output = EngineOutputStream(0, stream, TextStream(served.tokenizer, live.request.stop))
        try:
            await output.finish()
        except (GenerationFailed, ResponseFormatRefused) as error:
            raise _Dropped("error") from error
        except EngineStopped as error:
            raise _Dropped("stopped") from error
        finally:
            await output.aclose()
        if output.output.finish_reason not in _WHOLE:
            raise _Dropped(replay.drop_reason or self._why_aborted())
        self._count(live, CompletedOutput(live.request, served, stream, output.output))

    def _why_aborted(self) -> str:
        return "overload" if self._engine.is_accepting else "stopped"

    def _count(self, live: CompletedOutput, shadow: CompletedOutput) -> None:
        tokens = [[token.key for token in one.output.tokens] for one in (live, shadow)]
        are_alone = live.output.timings.was_alone and shadow.output.timings.was_alone
        self._counts.compared(
            _side(live, are_alone=are_alone),
            _side(shadow, are_alone=are_alone),
            token_agreement(*tokens).share,
        )
        if shadow.output.timings.was_alone:  # otherwise its times include waiting
            output = shadow.output
            labels = labels_of(shadow.served.entry, "shadow")
            timings, reason = output.timings, output.finish_reason
            self._metrics.finished(labels, output.num_prompt_tokens, reason, timings)

    def _drop(self, live: CompletedOutput, reason: str) -> None:
        self._counts.dropped(live.served.entry.name, reason)


def shadow_of(
    settings: ServeSettings,
    registry: ModelRegistry,
    engine: AsyncEngine,
    metrics: Metrics,
    backend: EngineBackend,
) -> Shadow | None:
    """The shadow traffic of these settings, None without a share. Registers its metrics anyway."""
    counts = ShadowMetrics(metrics.registry)
    if not settings.shadow_share:
        return None
    share, direction = settings.shadow_share, settings.shadow_direction
    shadow = Shadow(share, direction, registry, engine, metrics, counts)
    backend.on_completed(shadow.consider)
    return shadow


def _side(completed: CompletedOutput, *, are_alone: bool) -> ShadowSide:
    timings = completed.output.timings
    is_one_chunk = completed.output.num_prompt_tokens <= BACKGROUND_CHUNK
    return ShadowSide(
        completed.served.entry.name,
        completed.served.entry.kind,
        completed.output.num_tokens,
        timings.tpot_s if are_alone else None,
        timings.prefill_s if are_alone and is_one_chunk else None,
    )
