"""Prometheus metrics that compare live outputs with their replays on another variant.

They are sums and counts, so ratios of means are exact. Both sides of a pair are counted together,
so their counts are equal.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

from app.models.entry import ModelKind

_PAIR = ("live_model", "shadow_model")
_SIDE = (*_PAIR, "variant", "traffic")
_SHARES = (0.0, 0.05, *(tenth / 10 for tenth in range(1, 10)), 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class ShadowSide:
    """One output of a pair. Times are in seconds, or None if they are not comparable."""

    model: str
    kind: ModelKind
    num_tokens: int
    tpot_s: float | None
    prefill_s: float | None  # first forward to first token


class ShadowMetrics:
    """The metrics of one process. There are no series before the first replay."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._done = Counter(
            "sleb_shadow_done",
            "Live outputs that were replayed and compared.",
            _PAIR,
            registry=registry,
        )
        self._dropped = Counter(
            "sleb_shadow_dropped",
            "Live outputs chosen for a replay that was not started or not finished.",
            ("live_model", "reason"),
            registry=registry,
        )
        self._agreement = Histogram(
            "sleb_shadow_agreement_ratio",
            "Tokens before the first difference, over the tokens of the longer output.",
            _PAIR,
            buckets=_SHARES,
            registry=registry,
        )
        self._tokens = Counter(
            "sleb_shadow_answer_tokens",
            "Tokens of compared outputs.",
            _SIDE,
            registry=registry,
        )
        self._tpot = Summary(
            "sleb_shadow_tpot_seconds",
            "Time per output token, of pairs whose two runs each had the engine to themselves.",
            _SIDE,
            registry=registry,
        )
        self._prefill = Summary(
            "sleb_shadow_prefill_seconds",
            "First forward to first token, of the same pairs if the prompt is short.",
            _SIDE,
            registry=registry,
        )

    def dropped(self, live_model: str, reason: str) -> None:
        self._dropped.labels(live_model, reason).inc()

    def compared(self, live: ShadowSide, shadow: ShadowSide, agreement: float) -> None:
        """Count a pair, and the times that both sides have."""
        pair = (live.model, shadow.model)
        self._done.labels(*pair).inc()
        self._agreement.labels(*pair).observe(agreement)
        sides = {"live": live, "shadow": shadow}
        has_tpot = None not in (live.tpot_s, shadow.tpot_s)
        has_prefill = None not in (live.prefill_s, shadow.prefill_s)
        for traffic, side in sides.items():
            labels = (*pair, side.kind, traffic)
            self._tokens.labels(*labels).inc(side.num_tokens)
            if has_tpot and side.tpot_s is not None:
                self._tpot.labels(*labels).observe(side.tpot_s)
            if has_prefill and side.prefill_s is not None:
                self._prefill.labels(*labels).observe(side.prefill_s)
