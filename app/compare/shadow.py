"""Shadow traffic: live requests replayed on two variants while the engine is idle.

A replay begins when its live output is complete and runs as a background request of the engine,
which delays a live request by one step at most. Under load, replays are dropped first.

Every chosen request is replayed twice: on its own variant and on the counterpart. Their times
compare with each other, since both ran in the same way. Each of them comes first in every other
pair. A share of the pairs is a control: both replays on the request's own variant.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from uuid import uuid4

from app.compare.compare import token_agreement
from app.compare.shadow_times import ShadowTimes, TimedReplay
from app.config import ServeSettings
from app.engine.async_engine import AsyncEngine, EngineStopped
from app.engine.grammar import ResponseFormatRefused
from app.engine.sampling.stream import Stream
from app.engine.sampling.text import TextStream
from app.engine.scheduling.admission import Overloaded
from app.engine.scheduling.sequence import FinishReason, Request
from app.engine.variant import Variant
from app.generation.engine_backend import CompletedOutput, EngineBackend, EngineOutputStream
from app.generation.output import GenerationFailed, Output
from app.metrics.metrics import Metrics, labels_of
from app.metrics.shadow import ShadowMetrics, ShadowPair, ShadowSide
from app.models.catalog import UnknownModel
from app.models.entry import ModelEntry
from app.models.registry import ModelRegistry, ServedModel
from pruning.models.names import VariantName

MAX_PAIRS_AT_ONCE = 8
CONTROL_SHARE = 1 / 8  # of the pairs, drawn at random

_WHOLE = (FinishReason.STOP, FinishReason.LENGTH)


class _Dropped(Exception):
    """The pair is dropped. ``args[0]`` is the reason for the metrics."""


@dataclass(eq=False)
class _Pair:
    """The two replays of a live output."""

    live: CompletedOutput
    counterpart: ServedModel | None = None  # None until it is found, and for a control
    streams: list[Stream] = field(default_factory=list)  # that the engine has
    drop_reason: str | None = None

    def is_of(self, variants: Collection[Variant]) -> bool:
        own, other = self.live.served, self.counterpart
        return own.variant in variants or (other is not None and other.variant in variants)

    def drop(self, reason: str) -> None:
        """End both replays."""
        self.drop_reason = self.drop_reason or reason
        for stream in self.streams:
            stream.cancel()


class Shadow:
    """Replays a ``share``, 0 to 1, of the completed outputs.

    With ``direction`` "dense", requests to pruned variants are compared with their dense model.
    With the name of a variant, requests to its dense model are compared with that variant. ``@-6``
    stands for that variant of every dense model.
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
        self._times = ShadowTimes(counts, is_live_baseline=direction != "dense")
        self._random = random.Random()  # noqa: S311 - no secret
        self._pairs: dict[asyncio.Task[None], _Pair] = {}
        self._num_pairs: Counter[tuple[str, ...]] = Counter()  # begun, by the names of the sides

    def consider(self, live: CompletedOutput) -> None:
        """Begin the replays of this request, or drop them. Does not delay the live request."""
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
        elif len(self._pairs) >= MAX_PAIRS_AT_ONCE:
            self._drop(live, "busy")
        else:
            pair = _Pair(live)
            task = asyncio.create_task(self._run(pair, name))
            self._pairs[task] = pair
            task.add_done_callback(self._pairs.pop)

    async def forget(self, variants: Collection[Variant]) -> None:
        """Drop the replays on these variants, and wait until none holds a variant."""
        tasks = []
        for task, pair in self._pairs.items():
            if not pair.is_of(variants):
                continue
            if not pair.streams:
                self._drop(pair.live, "unloaded")
                task.cancel()
            pair.drop("unloaded")
            tasks.append(task)
        if tasks:
            await asyncio.wait(tasks)

    async def aclose(self) -> None:
        """Drop all replays."""
        for task in (tasks := list(self._pairs)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _counterpart(self, entry: ModelEntry) -> str | None:
        """The model that requests to this one are compared with, None if they are not."""
        if self._direction == "dense":
            return entry.parent
        variant = VariantName.parse(self._direction)
        is_meant = not entry.is_pruned and variant.model in ("", entry.name)
        return str(replace(variant, model=entry.name)) if is_meant else None

    async def _run(self, pair: _Pair, name: str) -> None:
        try:
            if self._random.random() >= CONTROL_SHARE:
                pair.counterpart = await self._find(name)
            own, other = pair.live.served, pair.counterpart
            outputs = await self._replay(pair, [own, other or own])
            self._count(pair.live, other, outputs)
        except _Dropped as dropped:
            self._drop(pair.live, str(dropped))

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

    async def _replay(self, pair: _Pair, sides: Sequence[ServedModel]) -> list[Output]:
        """The output of each side. The engine runs them one after the other."""
        self._check_warm(sides)
        order = list(range(len(sides)))
        if self._num_pairs[key := tuple(side.entry.name for side in sides)] % 2:
            order.reverse()
        self._num_pairs[key] += 1
        outputs: dict[int, EngineOutputStream] = {}
        async with AsyncExitStack() as stack:
            for at in order:
                outputs[at] = self._begin(pair, sides[at])
                stack.push_async_callback(outputs[at].aclose)
            await asyncio.gather(*(self._finish(pair, output) for output in outputs.values()))
        if pair.drop_reason is not None:
            raise _Dropped(pair.drop_reason)
        self._check_warm(sides)
        return [outputs[at].output for at in range(len(sides))]

    def _check_warm(self, sides: Sequence[ServedModel]) -> None:
        if any(self._engine.is_warming_up(side.variant) for side in sides):
            raise _Dropped("warming_up")

    def _begin(self, pair: _Pair, served: ServedModel) -> EngineOutputStream:
        live = pair.live
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
            stream = self._engine.background(request)
        except Overloaded as error:
            raise _Dropped("overload") from error
        except (EngineStopped, ValueError) as error:
            raise _Dropped("stopped" if isinstance(error, EngineStopped) else "error") from error
        pair.streams.append(stream)
        return EngineOutputStream(0, stream, TextStream(served.tokenizer, live.request.stop))

    async def _finish(self, pair: _Pair, output: EngineOutputStream) -> None:
        """Wait for the end of a replay; one that is not whole ends the other."""
        try:
            await output.finish()
        except (GenerationFailed, ResponseFormatRefused):
            pair.drop("error")
        except EngineStopped:
            pair.drop("stopped")
        else:
            if output.output.finish_reason not in _WHOLE:
                pair.drop("overload" if self._engine.is_accepting else "stopped")

    def _count(
        self, live: CompletedOutput, other: ServedModel | None, outputs: Sequence[Output]
    ) -> None:
        """Count the replay on the live model, and that on ``other``, None for a control."""
        own = live.served
        sides = [(own, outputs[0]), (other or own, outputs[1])]
        pair = ShadowPair(own.entry.name, sides[1][0].entry.name)
        agreements = [token_agreement(_keys(live.output), _keys(each)).share for each in outputs]
        self._counts.agreed_with_itself(pair.live, agreements[0])
        if other is None:
            self._counts.agreed_with_itself(pair.live, agreements[1])
            self._counts.controlled(pair.live)
        else:
            self._counts.compared(
                pair,
                ShadowSide(own.entry.kind, live.output.num_tokens),
                ShadowSide(other.entry.kind, outputs[1].num_tokens),
                agreements[1],
            )
        cached = (output.timings.num_cached_tokens or 0 for output in outputs)
        self._counts.reused(pair, sum(cached))
        self._times.add(pair, *(TimedReplay(each.entry.kind, output) for each, output in sides))
        for served, output in sides:
            if output.timings.was_alone:  # otherwise its times include waiting
                labels, reason = labels_of(served.entry, "shadow"), output.finish_reason
                self._metrics.finished(labels, output.num_prompt_tokens, reason, output.timings)

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


def _keys(output: Output) -> list[object]:
    return [token.key for token in output.tokens]
