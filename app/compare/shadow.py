"""Live requests once more, on another variant, whenever the engine has nothing else to do.

A replay begins when its live answer has ended and runs in the background of the engine, where it
never holds a live request up for more than one step. It is the first thing to go under load.
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
    """The replay is not made; ``args[0]`` is the reason for the metrics."""


@dataclass(eq=False)
class _Replay:
    live: CompletedOutput
    on: Variant | None = None  # None until it is found
    stream: Stream | None = None  # None until it is in the engine
    why_dropped: str | None = None


class Shadow:
    """Replays a ``share``, 0 to 1, of what ``consider`` is told of.

    With ``direction`` "dense", what pruned variants have answered is asked again of their dense
    model; with the name of a variant, what its dense model has answered is asked again of it.
    ``@-6`` stands for that variant of every dense model.
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
        """Begin a replay of this answer, or drop it; costs the live request nothing."""
        name = self._counterpart(live.served.entry)
        is_whole = live.output.finish_reason in _WHOLE
        if name is None or not is_whole or live.request.traffic != "live":
            return
        if self._random.random() >= self._share:
            return
        params = live.stream.request.params
        if not params.is_greedy and params.seed is None:
            self._drop(live, "unseeded")  # it would differ from itself
        elif not live.served.entry.is_view:
            self._drop(live, "no_counterpart")  # weights of its own: its parent may be another
        elif len(self._replays) >= MAX_REPLAYS:
            self._drop(live, "busy")
        else:
            replay = _Replay(live)
            task = asyncio.create_task(self._run(replay, name))
            self._replays[task] = replay
            task.add_done_callback(self._replays.pop)

    async def forget(self, variants: Collection[Variant]) -> None:
        """Drop the replays on these, and return when none of them holds one any more."""
        tasks = []
        for task, its in self._replays.items():
            is_early = its.on is None and its.live.served.variant in variants
            if is_early:
                self._drop(its.live, "unloaded")
                task.cancel()
            if is_early or its.on in variants:
                tasks.append(task)
            if its.on in variants and its.stream is not None:
                its.why_dropped = "unloaded"
                its.stream.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def aclose(self) -> None:
        """Drop all of them."""
        for task in (tasks := list(self._replays)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _counterpart(self, entry: ModelEntry) -> str | None:
        """What this one's answers are replayed on; None if they are not."""
        if self._direction == "dense":
            return entry.parent
        variant = VariantName.parse(self._direction)
        is_meant = not entry.is_pruned and variant.model in ("", entry.name)
        return str(replace(variant, model=entry.name)) if is_meant else None

    async def _run(self, replay: _Replay, name: str) -> None:
        try:
            served = await self._find(name)
            replay.on = served.variant
            await self._replay(replay, served)
        except _Dropped as dropped:
            self._drop(replay.live, str(dropped))

    async def _find(self, name: str) -> ServedModel:
        """Only what needs no weights that are not here already."""
        try:
            entry = await asyncio.to_thread(self._registry.catalog.resolve, name)
            if not entry.is_view or entry.base not in self._registry.weight_bytes():
                raise _Dropped("no_counterpart")
            return await asyncio.wrap_future(await asyncio.to_thread(self._registry.begin, name))
        except UnknownModel as error:
            raise _Dropped("no_counterpart") from error
        except (RuntimeError, ValueError, OSError) as error:  # whatever the model's files say
            raise _Dropped("error") from error

    async def _replay(self, replay: _Replay, served: ServedModel) -> None:
        live = replay.live
        asked = live.stream.request
        request = Request(
            f"shadow-{uuid4().hex}",
            served.variant,
            asked.prompt_ids,
            replace(asked.params, num_logprobs=None),
            is_background=True,
        )
        try:
            stream = replay.stream = self._engine.background(request)
        except Overloaded as error:
            raise _Dropped("overload") from error
        except (EngineStopped, ValueError) as error:
            raise _Dropped("stopped" if isinstance(error, EngineStopped) else "error") from error
        answer = EngineOutputStream(0, stream, TextStream(served.tokenizer, live.request.stop))
        try:
            await answer.finish()
        except GenerationFailed as error:
            raise _Dropped("error") from error
        except EngineStopped as error:
            raise _Dropped("stopped") from error
        finally:
            await answer.aclose()
        if answer.output.finish_reason not in _WHOLE:
            raise _Dropped(replay.why_dropped or self._why_aborted())
        self._count(live, CompletedOutput(live.request, served, stream, answer.output))

    def _why_aborted(self) -> str:
        return "overload" if self._engine.is_accepting else "stopped"

    def _count(self, live: CompletedOutput, shadow: CompletedOutput) -> None:
        tokens = [[token.key for token in its.output.tokens] for its in (live, shadow)]
        are_alone = live.output.timings.was_alone and shadow.output.timings.was_alone
        self._counts.compared(
            _side(live, are_alone=are_alone),
            _side(shadow, are_alone=are_alone),
            token_agreement(*tokens).share,
        )
        if shadow.output.timings.was_alone:  # else its times have waiting in them
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
    """None if no share of the requests is to be replayed; its metrics are there all the same."""
    counts = ShadowMetrics(metrics.registry)
    if not settings.shadow_share:
        return None
    share, direction = settings.shadow_share, settings.shadow_direction
    shadow = Shadow(share, direction, registry, engine, metrics, counts)
    backend.on_completed(shadow.consider)
    return shadow


def _side(its: CompletedOutput, *, are_alone: bool) -> ShadowSide:
    timings = its.output.timings
    prefill_s = None
    if timings.scheduled_s is not None and timings.first_token_s is not None:
        prefill_s = timings.first_token_s - timings.scheduled_s
    is_one_chunk = its.output.num_prompt_tokens <= BACKGROUND_CHUNK
    return ShadowSide(
        its.served.entry.name,
        its.served.entry.kind,
        its.output.num_tokens,
        timings.tpot_s if are_alone else None,
        prefill_s if are_alone and is_one_chunk else None,
    )
