"""Prometheus metrics of replays: compared pairs of variants, and the control of equal ones.

Sums and counts of both sides of a pair are counted together, so ratios of means are exact. Gauges
have what the process computes from its last pairs: intervals and verdicts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

from app.models.entry import ModelKind

_PAIR = ("live_model", "shadow_model")
_SIDE = (*_PAIR, "variant", "traffic")  # "live" for the live model, "shadow" for its counterpart
_SHARES = (0.0, 0.05, *(tenth / 10 for tenth in range(1, 10)), 0.95, 0.99, 1.0)


TimedSide = tuple[ModelKind, float]  # in seconds


@dataclass(frozen=True)
class ShadowPair:
    """The models of a pair by name: of the live request, and its counterpart.

    They are equal for a control.
    """

    live: str
    shadow: str

    @property
    def labels(self) -> tuple[str, str]:
        return self.live, self.shadow

    @property
    def is_control(self) -> bool:
        return self.live == self.shadow


@dataclass(frozen=True)
class ShadowSide:
    """One output of a pair."""

    kind: ModelKind
    num_tokens: int


@dataclass(frozen=True)
class ShadowReading:
    """A speed-up over the last pairs. ``bounds`` are the ratio and the ends of its interval."""

    num_pairs: int
    bounds: Mapping[str, float]
    verdict: str


class ShadowMetrics:
    """The metrics of one process. There are no series before the first replay."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._done = self._counter("done", "Live outputs that were replayed and compared.", _PAIR)
        self._dropped = self._counter(
            "dropped",
            "Live outputs chosen for replays that were not started or not finished.",
            ("live_model", "reason"),
        )
        self._agreement = self._agreements("", "counterpart's replay", _PAIR)
        self._floor = self._agreements("floor_", "replay on its own model", ("live_model",))
        self._tokens = self._counter("answer_tokens", "Tokens of compared outputs.", _SIDE)
        self._cached = self._counter(
            "cached_tokens",
            "Tokens of prompts that replays did not read; with 0, all prompts were read in full.",
            _PAIR,
        )
        self._times = {
            "tpot": self._summary("tpot", "Time per output token"),
            "prefill": self._summary("prefill", "First forward to first token, of short prompts"),
        }
        self._different_kernels = self._counter(
            "different_kernels", "Pairs that ran different kernels, so are not timed.", _PAIR
        )
        self._speedup = self._gauge(
            "speedup",
            "Dense over pruned in the last pairs, with its 95 % interval.",
            (*_PAIR, "time", "bound"),
        )
        self._pairs = self._gauge("speedup_pairs", "Pairs of the speed-up.", (*_PAIR, "time"))
        self._verdict = self._gauge(
            "verdict", "1 for the verdict on the speed-up.", (*_PAIR, "time", "verdict")
        )
        self._make_control()

    def _make_control(self) -> None:
        self._control_done = self._counter(
            "control_done", "Live outputs that were replayed as a control.", ("live_model",)
        )
        self._control = self._gauge(
            "control_speedup",
            "A model over itself in the last controls, with its 95 % interval.",
            ("live_model", "time", "bound"),
        )
        self._control_pairs = self._gauge(
            "control_pairs", "Controls of that ratio.", ("live_model", "time")
        )

    def dropped(self, live_model: str, reason: str) -> None:
        self._dropped.labels(live_model, reason).inc()

    def agreed_with_itself(self, live_model: str, agreement: float) -> None:
        """Count a live output and its replay on the same model."""
        self._floor.labels(live_model).observe(agreement)

    def compared(
        self, pair: ShadowPair, live: ShadowSide, shadow: ShadowSide, agreement: float
    ) -> None:
        """Count the outputs of a pair."""
        self._done.labels(*pair.labels).inc()
        self._agreement.labels(*pair.labels).observe(agreement)
        for traffic, side in (("live", live), ("shadow", shadow)):
            self._tokens.labels(*pair.labels, side.kind, traffic).inc(side.num_tokens)

    def timed(self, pair: ShadowPair, time: str, sides: Sequence[TimedSide]) -> None:
        """Count a time of both replays of a pair: on the live model, and on its counterpart."""
        for traffic, (kind, time_s) in zip(("live", "shadow"), sides, strict=True):
            self._times[time].labels(*pair.labels, kind, traffic).observe(time_s)

    def reused(self, pair: ShadowPair, num_tokens: int) -> None:
        """Count the tokens of prompts that the replays of a pair did not read."""
        self._cached.labels(*pair.labels).inc(num_tokens)

    def ran_different_kernels(self, pair: ShadowPair) -> None:
        self._different_kernels.labels(*pair.labels).inc()

    def controlled(self, live_model: str) -> None:
        self._control_done.labels(live_model).inc()

    def set_speedup(
        self, pair: ShadowPair, time: str, reading: ShadowReading, verdicts: Sequence[str]
    ) -> None:
        """``verdicts`` are all that there can be."""
        for bound, value in reading.bounds.items():
            self._speedup.labels(*pair.labels, time, bound).set(value)
        self._pairs.labels(*pair.labels, time).set(reading.num_pairs)
        for verdict in verdicts:
            self._verdict.labels(*pair.labels, time, verdict).set(verdict == reading.verdict)

    def set_control(self, live_model: str, time: str, reading: ShadowReading) -> None:
        for bound, value in reading.bounds.items():
            self._control.labels(live_model, time, bound).set(value)
        self._control_pairs.labels(live_model, time).set(reading.num_pairs)

    def _counter(self, name: str, about: str, labels: Sequence[str]) -> Counter:
        return Counter(f"sleb_shadow_{name}", about, labels, registry=self._registry)

    def _gauge(self, name: str, about: str, labels: Sequence[str]) -> Gauge:
        return Gauge(f"sleb_shadow_{name}", about, labels, registry=self._registry)

    def _summary(self, name: str, about: str) -> Summary:
        about = f"{about}, of pairs whose two replays each had the engine to themselves."
        return Summary(f"sleb_shadow_{name}_seconds", about, _SIDE, registry=self._registry)

    def _agreements(self, prefix: str, other: str, labels: Sequence[str]) -> Histogram:
        return Histogram(
            f"sleb_shadow_{prefix}agreement_ratio",
            f"Tokens of a live output before the first difference from its {other}, over the "
            "tokens of the longer output.",
            labels,
            buckets=_SHARES,
            registry=self._registry,
        )
