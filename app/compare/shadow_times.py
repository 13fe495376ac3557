"""The speed-ups of the last replays, their controls, and the verdicts that these allow."""

import logging
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from prometheus_client import Gauge

from app.compare.speedup import (
    Speedup,
    Verdict,
    all_kernels,
    beyond_noise,
    different_kernels,
    speedup,
)
from app.engine.scheduling.scheduler import BACKGROUND_CHUNK
from app.engine.scheduling.sequence import Timings
from app.generation.output import Output
from app.metrics.shadow import ShadowMetrics, ShadowPair
from app.models.entry import ModelKind

logger = logging.getLogger(__name__)

MAX_PAIRS = 200  # that are kept of each two models, and of each control

_Time = Callable[[Timings], float | None]
_TIMES: Mapping[str, _Time] = MappingProxyType(
    {"tpot": lambda timings: timings.tpot_s, "prefill": lambda timings: timings.prefill_s}
)
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
        self._pairs: defaultdict[tuple[ShadowPair, str], _Pairs] = defaultdict(_last_pairs)
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


def _last_pairs() -> _Pairs:
    return deque(maxlen=MAX_PAIRS)


def _set(bounds: Gauge, pairs: Gauge, labels: Sequence[str], measured: Speedup) -> None:
    """The ratio and the ends of its interval, if it has one, and over how many pairs it is."""
    ends = {"ratio": measured.ratio, "low": measured.low, "high": measured.high}
    for bound, value in ends.items():
        if value is not None:
            bounds.labels(*labels, bound).set(value)
    pairs.labels(*labels).set(measured.num_pairs)
