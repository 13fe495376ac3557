"""Prometheus metrics of replays: compared pairs of variants, and the control of equal ones.

Sums and counts of both sides of a pair are counted together, so ratios of means are exact. Gauges
have what the process computes from its last pairs: intervals and verdicts.
"""

from collections.abc import Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary

_PAIR = ("live_model", "shadow_model")
_SIDE = (*_PAIR, "variant", "traffic")  # "live" for the live model, "shadow" for its counterpart
_SHARES = (0.0, 0.05, *(tenth / 10 for tenth in range(1, 10)), 0.95, 0.99, 1.0)


class ShadowPair(NamedTuple):
    """The models of a pair by name, which are its labels: of the live request, and its counterpart.

    They are equal for a control.
    """

    live: str
    shadow: str

    @property
    def is_control(self) -> bool:
        return self.live == self.shadow


class ShadowMetrics:
    """The metrics of one process. There are no series before the first replay."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.done = self._counter("done", "Live outputs that were replayed and compared.", _PAIR)
        self.dropped = self._counter(
            "dropped",
            "Live outputs chosen for replays that were not started or not finished.",
            ("live_model", "reason"),
        )
        self.agreement = self._agreements("", "counterpart's replay", _PAIR)
        self.floor = self._agreements("floor_", "replay on its own model", ("live_model",))
        self.tokens = self._counter("answer_tokens", "Tokens of compared outputs.", _SIDE)
        self.cached = self._counter(
            "cached_tokens",
            "Tokens of prompts that replays did not read; with 0, all prompts were read in full.",
            _PAIR,
        )
        self.times = {
            "tpot": self._summary("tpot", "Time per output token"),
            "prefill": self._summary("prefill", "First forward to first token, of short prompts"),
        }
        self.different_kernels = self._counter(
            "different_kernels", "Pairs that ran different kernels, so are not timed.", _PAIR
        )
        self.speedup = self._gauge(
            "speedup",
            "Dense over pruned in the last pairs, with its 95 % interval.",
            (*_PAIR, "time", "bound"),
        )
        self.pairs = self._gauge("speedup_pairs", "Pairs of the speed-up.", (*_PAIR, "time"))
        self.verdict = self._gauge(
            "verdict", "1 for the verdict on the speed-up.", (*_PAIR, "time", "verdict")
        )
        self._make_control()

    def _make_control(self) -> None:
        self.controls = self._counter(
            "control_done", "Live outputs that were replayed as a control.", ("live_model",)
        )
        self.control_speedup = self._gauge(
            "control_speedup",
            "A model over itself in the last controls, with its 95 % interval.",
            ("live_model", "time", "bound"),
        )
        self.control_pairs = self._gauge(
            "control_pairs", "Controls of that ratio.", ("live_model", "time")
        )

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
