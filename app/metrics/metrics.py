"""Counters and histograms of the API process, with vLLM's suffixes, units and meanings.

Histograms have vLLM's bucket boundaries, and enough between them to resolve a speed-up of 1.25.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import Context, copy_context
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric

from app.engine.scheduling.sequence import FinishReason, Timings
from app.metrics.vllm_names import RegistryWithVllmNames
from app.models.entry import ModelEntry, ModelKind
from app.readiness import Readiness
from app.request_id import current_request_id


def latency_buckets(
    *standard: float, fill_from: float = 0.001, fill_to: float = 10.0
) -> tuple[float, ...]:
    """vLLM's boundaries in seconds, so that SLO queries carry over, and a geometric fill.

    Steps of 1.1 tell a speed-up of 1.25 from none; the standard ones alone do not.
    """
    filled = []
    while fill_from <= fill_to:
        filled.append(float(f"{fill_from:.3g}"))
        fill_from *= 1.1
    return tuple(sorted({*standard, *filled}))


TTFT_S = latency_buckets(
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80, 160, 640, 2560,
)  # fmt: skip
PER_TOKEN_S = latency_buckets(
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80
)
REQUEST_S = latency_buckets(
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680
)
TOKENS = tuple(float(step * 10**power) for power in range(6) for step in (1, 2, 5))
SEQUENCES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 48.0, 64.0, 96.0, 128.0, 192.0, 256.0, 512.0)

# By what of ``Timings`` a histogram observes: its name, text and boundaries. Sizes of requests are
# there because latencies are comparable only between similar ones.
_OF_TIMINGS: Mapping[str, tuple[str, str, tuple[float, ...]]] = {
    "ttft_s": ("time_to_first_token_seconds", "Arrival to first token.", TTFT_S),
    "tpot_s": (
        "request_time_per_output_token_seconds",
        "Mean time per token after the first, one observation a request.",
        PER_TOKEN_S,
    ),
    "e2e_s": ("e2e_request_latency_seconds", "Arrival to last token.", REQUEST_S),
    "queue_s": ("request_queue_time_seconds", "Arrival to first forward pass.", REQUEST_S),
    "prefill_s": ("request_prefill_time_seconds", "First forward pass to first token.", REQUEST_S),
    "decode_s": ("request_decode_time_seconds", "First token to last token.", REQUEST_S),
    "num_tokens": ("request_generation_tokens", "Tokens generated for a request.", TOKENS),
    "mean_batch_size": (
        "request_batch_size",
        "Sequences in a decode step, mean over those of a request.",
        SEQUENCES,
    ),
}
_LABELS = ("model_name", "variant", "traffic", "engine")
EngineName = Literal["own", "vllm", "openai"]  # openai: a server that was declared
_COMPUTED, _FOUND = "local_compute", "local_cache_hit"  # vLLM's sources of prompt tokens
_UNKNOWN_MODEL = "other"  # unknown names from clients would be an unbounded label
_MAX_EXEMPLAR_CHARS = 128 - len("request_id")  # characters, by OpenMetrics

Finished = Callable[["Labels", int, FinishReason, Timings], None]


class Labels:
    """Of one variant: the served name, dense or pruned, the kind of traffic, and what generates.

    ``origin`` is the context of the request that they were made for, with its id and its trace.
    """

    def __init__(
        self, model_name: str, kind: ModelKind, traffic: str = "live", engine: EngineName = "own"
    ) -> None:
        self.values = (model_name, kind, traffic, engine)
        self.traffic = traffic
        self.origin: Context = copy_context()
        self.request_id = request_id = self.origin.get(current_request_id)
        self.exemplar = {"request_id": request_id[:_MAX_EXEMPLAR_CHARS]} if request_id else None


def labels_of(entry: ModelEntry, traffic: str = "live", engine: EngineName = "own") -> Labels:
    return Labels(entry.name, entry.kind, traffic, engine)


class Metrics:
    """The counters and histograms of one process, in a registry of their own."""

    def __init__(self, *, with_vllm_names: bool = False) -> None:
        self.registry = RegistryWithVllmNames() if with_vllm_names else CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._listeners: list[Finished] = []
        self._itl = self._histogram(
            "inter_token_latency_seconds", "Between two tokens of a request.", PER_TOKEN_S
        )
        self._prompt_lengths = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a request.", TOKENS
        )
        self._of_timings = {of: self._histogram(*which) for of, which in _OF_TIMINGS.items()}
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens processed.", *_LABELS)
        self._prompt_sources = self._counter(
            "prompt_tokens_by_source",
            "Prompt tokens by where keys and values are from.",
            *_LABELS,
            "source",
        )
        self._generation_tokens = self._counter("generation_tokens", "Tokens generated.", *_LABELS)
        self._success = self._counter(
            "request_success", "Requests that finished.", *_LABELS, "finished_reason"
        )
        self._rejections = self._counter(
            "admission_rejections", "Requests refused before queueing.", *_LABELS, "reason"
        )
        self.http = self._counter(
            "http_requests", "Requests answered.", "route", "method", "status"
        )
        self.key_refusals = self._counter(
            "key_limit_refusals",
            "Requests refused by a limit of their API key or the tokens of its tenant.",
            "limit",
        )
        self.key_limits_unknown = self._counter(
            "key_limits_unknown",
            "Requests admitted without checking key limits, as Redis did not respond.",
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"sleb_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, boundaries: tuple[float, ...]) -> Histogram:
        return Histogram(f"sleb_{name}", text, _LABELS, buckets=boundaries, registry=self.registry)

    def on_finished(self, listener: Finished) -> None:
        """Call the listener with the arguments of every ``finished``."""
        self._listeners.append(listener)

    def admitted(self, labels: Labels) -> None:
        """Create all series of these labels, so that rates start from 0."""
        values = labels.values
        for histogram in (self._itl, self._prompt_lengths, *self._of_timings.values()):
            histogram.labels(*values)
        for counter in (self._prompt_tokens, self._generation_tokens):
            counter.labels(*values)
        for source in (_COMPUTED, _FOUND):
            self._prompt_sources.labels(*values, source)
        for reason in FinishReason:
            self._success.labels(*values, reason)

    def finished(
        self, labels: Labels, num_prompt_tokens: int, reason: FinishReason, timings: Timings
    ) -> None:
        """Count one request that left the engine.

        Aborted and failed requests count without latencies, which would bias them downwards.
        """
        values = labels.values
        self._prompt_tokens.labels(*values).inc(num_prompt_tokens)
        num_found = min(timings.num_cached_tokens or 0, num_prompt_tokens)
        self._prompt_sources.labels(*values, _FOUND).inc(num_found)
        self._prompt_sources.labels(*values, _COMPUTED).inc(num_prompt_tokens - num_found)
        self._generation_tokens.labels(*values).inc(timings.num_tokens)
        self._success.labels(*values, reason).inc()
        if reason not in {FinishReason.ABORT, FinishReason.ERROR}:
            self._observe(labels, self._prompt_lengths, num_prompt_tokens)
            for name, histogram in self._of_timings.items():
                self._observe(labels, histogram, getattr(timings, name))
        for listener in self._listeners:
            listener(labels, num_prompt_tokens, reason, timings)

    def token_gaps(self, labels: Labels) -> Callable[[float], None]:
        """Return a function that observes the seconds between two tokens of one output.

        Only a new longest gap has the request id as its exemplar.
        """
        gaps, longest_s = self._itl.labels(*labels.values), 0.0

        def observe(seconds: float) -> None:
            nonlocal longest_s
            gaps.observe(seconds, labels.exemplar if seconds > longest_s else None)
            longest_s = max(longest_s, seconds)

        return observe

    def rejected(self, labels: Labels, reason: str) -> None:
        self._rejections.labels(*labels.values, reason).inc()

    def rejected_unparsed(self, reason: str) -> None:
        """Count a request that was refused before its model was known."""
        self._rejections.labels(_UNKNOWN_MODEL, "unknown", "live", "unknown", reason).inc()

    def _observe(self, labels: Labels, histogram: Histogram, value: float | None) -> None:
        if value is not None:
            histogram.labels(*labels.values).observe(value, labels.exemplar)

    def watch_readiness(self, readiness: Readiness) -> None:
        ready = Gauge("sleb_ready", "1 while the process accepts traffic.", registry=self.registry)
        ready.set_function(lambda: readiness.reason is None)
        draining = Gauge("sleb_draining", "1 during shutdown.", registry=self.registry)
        draining.set_function(lambda: readiness.is_draining)


def gauge(
    name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float | None]]
) -> Metric:
    """A gauge made at a scrape, of rows of labels and a value. There is no series for None."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for of, value in rows:
        if value is not None:
            family.add_metric(of, value)
    return family
