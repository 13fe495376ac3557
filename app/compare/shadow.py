"""Shadow traffic: live requests replayed on two variants while their engine is idle.

A replay begins when its live output is complete. In the engine of this process it is a background
request, which delays a live request by one step at most; in vLLM it ends when a live request comes.
Under load, replays are dropped first.

Every chosen request is replayed twice: on its own variant and on the counterpart. Their times
compare with each other, since both ran in the same way. Each of them comes first in every other
pair. A share of the pairs is a control: both replays on the request's own variant.
"""

import asyncio
import logging
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prometheus_client import Gauge

from app.compare.compare import token_agreement
from app.compare.replays import WHOLE, Dropped, EngineReplays, Pair, Replays, VllmReplays
from app.compare.speedup import (
    Speedup,
    Verdict,
    all_kernels,
    beyond_noise,
    different_kernels,
    speedup,
)
from app.config import ServeSettings
from app.engine.async_engine import AsyncEngine
from app.engine.scheduling.scheduler import BACKGROUND_CHUNK
from app.engine.scheduling.sequence import Timings
from app.engine.variant import Variant
from app.generation.engine_backend import EngineBackend
from app.generation.output import CompletedOutput, Output
from app.generation.request import Served, ServedElsewhere
from app.generation.vllm_backend import VllmBackend
from app.metrics.metrics import EngineName, Metrics, labels_of
from app.metrics.shadow import ShadowMetrics, ShadowPair
from app.models.catalog import Catalog, UnknownModel
from app.models.entry import ModelEntry, ModelKind
from app.models.registry import ModelRegistry, ServedModel
from pruning.models.names import VariantName

logger = logging.getLogger(__name__)

MAX_PAIRS_AT_ONCE = 8
MAX_PAIRS = 200  # that are kept of each two models, and of each control
CONTROL_SHARE = 1 / 8  # of the pairs, drawn at random
_Time = Callable[[Timings], float | None]
_TIMES: Mapping[str, _Time] = {
    "tpot": lambda timings: timings.tpot_s,
    "prefill": lambda timings: timings.prefill_s,
}
_Pairs = deque[tuple[float, float]]  # seconds of baseline and variant


@dataclass(frozen=True)
class TimedReplay:
    kind: ModelKind
    output: Output

    def time_s(self, time: str) -> float | None:
        """None if it is not comparable: longer prompts may be interrupted between chunks."""
        if time == "prefill" and self.output.num_prompt_tokens > BACKGROUND_CHUNK:
            return None
        return _TIMES[time](self.output.timings)


class ShadowTimes:
    """Keeps the last pairs, and writes to the metrics what they show.

    The baseline of a speed-up is the live model or its counterpart.
    """

    def __init__(self, counts: ShadowMetrics, *, is_live_baseline: bool) -> None:
        self._counts = counts
        self._is_live_baseline = is_live_baseline
        self._pairs: defaultdict[tuple[ShadowPair, str], _Pairs] = defaultdict(
            lambda: deque(maxlen=MAX_PAIRS)
        )
        self._objections: dict[ShadowPair, str | None] = {}  # of the last pair

    def add(self, pair: ShadowPair, live: TimedReplay, shadow: TimedReplay) -> None:
        """Add two replays of one request. Both of one model are a control.

        Only replays that each had the engine to themselves are timed, and that ran the same
        kernels. While the last pair ran different ones, there is no verdict.
        """
        sides = live, shadow
        if not all(side.output.timings.was_alone for side in sides):
            return
        kernels = [all_kernels([side.output.timings.kernels]) for side in sides]
        objection = self._objections[pair] = different_kernels(*kernels)
        if objection is None:
            self._add(pair, live, shadow)
        else:
            logger.warning("%s and its replay on %s: %s", pair.live, pair.shadow, objection)
            self._counts.different_kernels.labels(*pair).inc()
        for time in _TIMES:
            self._publish(pair.live, time)

    def _add(self, pair: ShadowPair, live: TimedReplay, shadow: TimedReplay) -> None:
        for time in _TIMES:
            live_s, shadow_s = live.time_s(time), shadow.time_s(time)
            if live_s is None or shadow_s is None:
                continue
            times_s = (live_s, shadow_s) if self._is_live_baseline else (shadow_s, live_s)
            self._pairs[pair, time].append(times_s)
            if not pair.is_control:
                observed = self._counts.times[time]
                observed.labels(*pair, live.kind, "live").observe(live_s)
                observed.labels(*pair, shadow.kind, "shadow").observe(shadow_s)

    def _publish(self, live: str, time: str) -> None:
        """The control of a model, and every pair of it, whose verdict depends on the control."""
        counts = self._counts
        control = self._speedup(ShadowPair(live, live), time)
        if control is not None:
            _set(counts.control_speedup, counts.control_pairs, (live, time), control)
        for pair in [pair for pair in self._objections if pair.live == live]:
            measured = None if pair.is_control else self._speedup(pair, time)
            if measured is not None:
                shown = beyond_noise(measured, control)
                _set(counts.speedup, counts.pairs, (*pair, time), shown)
                for verdict in Verdict:
                    counts.verdict.labels(*pair, time, verdict).set(verdict is shown.verdict)

    def _speedup(self, pair: ShadowPair, time: str) -> Speedup | None:
        times_s = self._pairs.get((pair, time))
        if not times_s:
            return None
        baseline_s, variant_s = zip(*times_s, strict=True)
        return speedup(baseline_s, variant_s, self._objections[pair])


def _set(bounds: Gauge, pairs: Gauge, labels: Sequence[str], measured: Speedup) -> None:
    """The ratio and the ends of its interval, if it has one, and over how many pairs it is."""
    ends = {"ratio": measured.ratio, "low": measured.low, "high": measured.high}
    for bound, value in ends.items():
        if value is not None:
            bounds.labels(*labels, bound).set(value)
    pairs.labels(*labels).set(measured.num_pairs)


@dataclass(eq=False)
class Shadow:
    """Replays a ``share``, 0 to 1, of the completed outputs.

    With ``direction`` "dense", requests to pruned variants are compared with their dense model.
    With the name of a variant, requests to its dense model are compared with that variant. ``@-6``
    stands for that variant of every dense model.
    """

    share: float
    direction: str
    catalog: Catalog
    own: Replays
    vllm: Replays | None
    metrics: Metrics
    counts: ShadowMetrics
    times: ShadowTimes
    _random: random.Random = field(default_factory=random.Random, init=False)  # no secret
    _pairs: dict[asyncio.Task[None], Pair] = field(default_factory=dict, init=False)
    # begun, by the names of the sides
    _num_pairs: Counter[tuple[str, ...]] = field(default_factory=Counter, init=False)

    def consider(self, live: CompletedOutput) -> None:
        """Begin the replays of this request, or drop them. Does not delay the live request."""
        name = self._counterpart(live.served.entry)
        is_whole = live.output.finish_reason in WHOLE and live.output.num_tokens > 0
        if name is None or not is_whole or live.request.traffic != "live":
            return
        if self._random.random() >= self.share:
            return
        params = live.request.params
        if not params.is_greedy and params.seed is None:
            self._drop(live, "unseeded")  # its own repetition would differ
        elif not live.served.entry.is_view:
            self._drop(live, "no_counterpart")  # has its own weights, so its parent may differ
        elif len(self._pairs) >= MAX_PAIRS_AT_ONCE:
            self._drop(live, "busy")
        else:
            pair = Pair(live)
            task = asyncio.create_task(self._run(pair, name))
            self._pairs[task] = pair
            task.add_done_callback(self._pairs.pop)

    async def forget(self, variants: Collection[Variant]) -> None:
        """Drop the replays on these variants, and wait until none holds a variant."""
        await self._forget(lambda one: isinstance(one, ServedModel) and one.variant in variants)

    async def forget_server(self, entry: ModelEntry) -> None:
        """Drop the replays on the vLLM of this entry, and wait until none asks it."""
        name = entry.pinned_name
        await self._forget(
            lambda one: isinstance(one, ServedElsewhere) and one.entry.pinned_name == name
        )

    async def _forget(self, is_meant: Callable[[Served], bool]) -> None:
        tasks = []
        for task, pair in self._pairs.items():
            if not pair.is_of(is_meant):
                continue
            if not pair.cancels:
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
        if self.direction == "dense":
            return entry.parent
        variant = VariantName.parse(self.direction)
        is_meant = not entry.is_pruned and variant.model in ("", entry.name)
        return str(replace(variant, model=entry.name)) if is_meant else None

    async def _run(self, pair: Pair, name: str) -> None:
        try:
            replays, other = self._replays_of(pair.live)
            if self._random.random() >= CONTROL_SHARE:
                pair.counterpart = await self._found(name, replays)
            own, counterpart = pair.live.served, pair.counterpart
            outputs = await self._replay(pair, [own, counterpart or own], replays, other)
            self._count(pair.live, counterpart, outputs)
        except Dropped as dropped:
            self._drop(pair.live, str(dropped))

    async def _found(self, name: str, replays: Replays) -> Served:
        """The counterpart of this name. Raises ``Dropped``."""
        try:
            entry = await asyncio.to_thread(self.catalog.resolve, name)
            served = await replays.find(entry)
        except UnknownModel as error:
            raise Dropped("no_counterpart") from error
        except (RuntimeError, ValueError, OSError) as error:  # of the model's files
            raise Dropped("error") from error
        if served is None:
            raise Dropped("no_counterpart")
        return served

    def _replays_of(self, live: CompletedOutput) -> tuple[Replays, Replays | None]:
        """Those of its engine, and those of the other one."""
        if isinstance(live.served, ServedModel):
            return self.own, self.vllm
        assert self.vllm is not None
        return self.vllm, self.own

    async def _replay(
        self, pair: Pair, sides: Sequence[Served], replays: Replays, elsewhere: Replays | None
    ) -> list[Output]:
        """The output of each side. Times mean nothing while another engine shares the machine."""
        order = list(range(len(sides)))
        if self._num_pairs[key := tuple(side.entry.name for side in sides)] % 2:
            order.reverse()
        self._num_pairs[key] += 1
        is_shared = elsewhere is not None and elsewhere.is_busy
        in_order = await replays.outputs(pair, [sides[at] for at in order])
        if is_shared or (elsewhere is not None and elsewhere.is_busy):
            in_order = [
                replace(output, timings=replace(output.timings, was_alone=False))
                for output in in_order
            ]
        return [in_order[order.index(at)] for at in range(len(sides))]

    def _count(
        self, live: CompletedOutput, other: Served | None, outputs: Sequence[Output]
    ) -> None:
        """Count the replay on the live model, and that on ``other``, None for a control."""
        own = live.served
        sides = [(own, outputs[0]), (other or own, outputs[1])]
        pair = ShadowPair(own.entry.name, sides[1][0].entry.name)
        agreements = [token_agreement(_keys(live.output), _keys(each)).share for each in outputs]
        self.counts.floor.labels(pair.live).observe(agreements[0])
        if other is None:
            self.counts.floor.labels(pair.live).observe(agreements[1])
            self.counts.controls.labels(pair.live).inc()
        else:
            self.counts.done.labels(*pair).inc()
            self.counts.agreement.labels(*pair).observe(agreements[1])
            compared = (("live", own, live.output), ("shadow", other, outputs[1]))
            for traffic, served, output in compared:
                tokens = self.counts.tokens.labels(*pair, served.entry.kind, traffic)
                tokens.inc(output.num_tokens)
        cached = (output.timings.num_cached_tokens or 0 for output in outputs)
        self.counts.cached.labels(*pair).inc(sum(cached))
        self.times.add(pair, *(TimedReplay(each.entry.kind, output) for each, output in sides))
        for served, output in sides:
            if output.timings.was_alone:  # otherwise its times include waiting
                engine: EngineName = "own"
                if not isinstance(served, ServedModel):
                    engine = served.model.backend
                labels = labels_of(served.entry, "shadow", engine)
                reason = output.finish_reason
                self.metrics.finished(labels, output.num_prompt_tokens, reason, output.timings)

    def _drop(self, live: CompletedOutput, reason: str) -> None:
        self.counts.dropped.labels(live.served.entry.name, reason).inc()


def shadow_of(
    settings: ServeSettings,
    registry: ModelRegistry,
    engine: AsyncEngine,
    metrics: Metrics,
    backend: EngineBackend,
    vllm: VllmBackend | None,
) -> Shadow | None:
    """The shadow traffic of these settings, None without a share. Registers its metrics anyway."""
    counts = ShadowMetrics(metrics.registry)
    share, direction = settings.shadow_share, settings.shadow_direction
    if not share:
        return None
    own = EngineReplays(registry, engine)
    of_vllm = None if vllm is None else VllmReplays(vllm, own)
    times = ShadowTimes(counts, is_live_baseline=direction != "dense")
    shadow = Shadow(share, direction, registry.catalog, own, of_vllm, metrics, counts, times)
    backend.completions.listener = shadow.consider
    if vllm is not None:
        vllm.completions.listener = shadow.consider
    return shadow


def _keys(output: Output) -> list[object]:
    return [token.key for token in output.tokens]
