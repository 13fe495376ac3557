"""What live answers and their replays on another variant have in common, for Prometheus.

Sums and counts, from which ratios of means are exact. Both sides of a pair are counted at once, so
that their counts are equal.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

from app.models.entry import ModelKind

_PAIR = ("live_model", "shadow_model")
_SIDE = (*_PAIR, "variant", "traffic")
_SHARES = (0.0, 0.05, *(tenth / 10 for tenth in range(1, 10)), 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class ShadowSide:
    """One answer of a pair. Times in seconds, None where they cannot be compared."""

    model: str
    kind: ModelKind
    num_tokens: int
    tpot_s: float | None
    prefill_s: float | None  # first forward to first token


class ShadowMetrics:
    """Of one process; there are no series before the first replay."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._done = Counter(
            "sleb_shadow_done",
            "Live answers that were replayed and compared.",
            _PAIR,
            registry=registry,
        )
        self._dropped = Counter(
            "sleb_shadow_dropped",
            "Live answers chosen for a replay that was not made or not finished.",
            ("live_model", "reason"),
            registry=registry,
        )
        self._agreement = Histogram(
            "sleb_shadow_agreement_ratio",
            "Tokens before the first difference, over those of the longer answer.",
            _PAIR,
            buckets=_SHARES,
            registry=registry,
        )
        self._tokens = Counter(
            "sleb_shadow_answer_tokens",
            "Tokens of compared answers; the ratio of both is that of their lengths.",
            _SIDE,
            registry=registry,
        )
        self._tpot = Summary(
            "sleb_shadow_tpot_seconds",
            "Time per output token, of pairs whose sides each had the engine to themselves.",
            _SIDE,
            registry=registry,
        )
        self._prefill = Summary(
            "sleb_shadow_prefill_seconds",
            "First forward to first token, of such pairs with a short prompt.",
            _SIDE,
            registry=registry,
        )

    def dropped(self, live_model: str, reason: str) -> None:
        self._dropped.labels(live_model, reason).inc()

    def compared(self, live: ShadowSide, shadow: ShadowSide, agreement: float) -> None:
        """Count a pair; of times only those that both sides have."""
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
