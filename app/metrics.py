"""Every metric of the API process, by name. vLLM's suffixes, units and meanings under our prefix.

Fed with what leaves the engine; knows no route and no engine internals.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.engine.engine import EngineStats
from app.engine.sequence import FinishReason, Timings
from app.entry import Entry

_LABELS = ("model_name", "variant", "traffic")


def latency_buckets(
    *standard: float, fill_from: float = 0.001, fill_to: float = 10.0
) -> list[float]:
    """vLLM's boundaries, so that SLO queries carry over, and a geometric fill between them.

    Steps of 1.1 tell a speed-up of 1.25 from none; the standard ones alone do not.
    """
    filled = []
    while fill_from <= fill_to:
        filled.append(float(f"{fill_from:.3g}"))
        fill_from *= 1.1
    return sorted({*standard, *filled})


_TTFT = latency_buckets(
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40,
    80, 160, 640, 2560,
)  # fmt: skip
_PER_TOKEN = latency_buckets(
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80
)
_REQUEST = latency_buckets(
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680
)


class Metrics:
    """The counters and histograms of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(name, text, _LABELS, buckets=tuple(buckets), registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, (*_LABELS, *labels), registry=self.registry)

        self._ttft = histogram("sleb_time_to_first_token_seconds", "Arrival to first token.", _TTFT)
        self._itl = histogram(
            "sleb_inter_token_latency_seconds", "Between two tokens of a request.", _PER_TOKEN
        )
        self._tpot = histogram(
            "sleb_request_time_per_output_token_seconds",
            "Mean time per token after the first, one observation a request.",
            _PER_TOKEN,
        )
        self._e2e = histogram(
            "sleb_e2e_request_latency_seconds", "Arrival to last token.", _REQUEST
        )
        self._queue = histogram(
            "sleb_request_queue_time_seconds", "Arrival to first forward pass.", _REQUEST
        )
        self._prompt_tokens = counter("sleb_prompt_tokens", "Prompt tokens taken.")
        self._generation_tokens = counter("sleb_generation_tokens", "Tokens generated.")
        self._success = counter(
            "sleb_request_success", "Requests that came to an end.", "finished_reason"
        )
        self._rejections = Counter(
            "sleb_admission_rejections",
            "Requests refused before they were queued.",
            ("reason",),
            registry=self.registry,
        )

    def finished(
        self, labels: "Labels", num_prompt_tokens: int, reason: FinishReason, timings: Timings
    ) -> None:
        """Count one request that has left the engine, whichever way.

        How long it took is told only of those that ran their course: what a client or a failure
        cut short would make latencies look better than they are.
        """
        values = labels.values
        self._prompt_tokens.labels(*values).inc(num_prompt_tokens)
        self._generation_tokens.labels(*values).inc(timings.num_tokens)
        self._success.labels(*values, reason).inc()
        if reason in {FinishReason.ABORT, FinishReason.ERROR}:
            return
        self._queue.labels(*values).observe(timings.queue_s)
        self._e2e.labels(*values).observe(timings.e2e_s)
        if timings.ttft_s is not None:
            self._ttft.labels(*values).observe(timings.ttft_s)
        if timings.tpot_s is not None:
            self._tpot.labels(*values).observe(timings.tpot_s)

    def token_gap(self, labels: "Labels", seconds: float) -> None:
        self._itl.labels(*labels.values).observe(seconds)

    def rejected(self, reason: str) -> None:
        self._rejections.labels(reason).inc()

    def watch(
        self,
        stats: Callable[[], EngineStats],
        entries: Callable[[], Iterable[Entry]],
        weight_bytes: Callable[[], Mapping[str, int]],
    ) -> None:
        """Read these whenever the metrics are scraped."""
        self.registry.register(_Watched(stats, entries, weight_bytes))

    def watch_external(
        self,
        num_running: Callable[[], Mapping[str, int]],
        num_waiting: Callable[[], Mapping[str, int]],
    ) -> None:
        """Likewise, of models that other servers generate for, by name."""
        self.registry.register(_WatchedElsewhere(num_running, num_waiting))


class Labels:
    """Of one variant: the served name, dense or pruned, and what kind of traffic it is."""

    def __init__(self, model_name: str, *, is_pruned: bool, traffic: str = "live") -> None:
        self.values = (model_name, "pruned" if is_pruned else "dense", traffic)


def labels_of(entry: Entry) -> Labels:
    return Labels(entry.name, is_pruned=entry.num_removed > 0)


class _Watched(Collector):
    def __init__(
        self,
        stats: Callable[[], EngineStats],
        entries: Callable[[], Iterable[Entry]],
        weight_bytes: Callable[[], Mapping[str, int]],
    ) -> None:
        self._stats = stats
        self._entries = entries
        self._weight_bytes = weight_bytes

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        yield _gauge("sleb_num_requests_running", "Sequences being generated.", stats.num_running)
        yield _gauge("sleb_num_requests_waiting", "Sequences without a slot.", stats.num_waiting)
        yield _gauge(
            "sleb_kv_cache_usage_perc", "Share of the cache, 0 to 1.", stats.kv_cache_usage
        )
        yield _gauge("sleb_batch_size", "Sequences in the latest decode step.", stats.batch_size)
        caches = {name: its.kv_cache_bytes for name, its in stats.variants.items()}
        yield _by_model("sleb_kv_cache_bytes", "Held for its running sequences.", caches)
        yield _by_model("sleb_model_weight_bytes", "Weights in memory.", self._weight_bytes())
        yield from _gpu_memory()
        entries = [entry for entry in self._entries() if entry.error is None]
        scores = {entry.name: entry.probe.score for entry in entries if entry.probe}
        yield _by_model("sleb_model_probe_score", "Share of the probe, 0 to 1.", scores)
        yield _model_info(entries)


def _model_info(entries: Iterable[Entry]) -> Metric:
    names = ["model_name", "parent", "num_blocks", "removed_blocks", "job_id"]
    names += ["perplexity", "dense_perplexity", "dtype"]
    info = GaugeMetricFamily("sleb_model_info", "Lineage and quality, always 1.", labels=names)
    for entry in entries:
        info.add_metric(_info_labels(entry), 1)
    return info


class _WatchedElsewhere(Collector):
    def __init__(
        self,
        num_running: Callable[[], Mapping[str, int]],
        num_waiting: Callable[[], Mapping[str, int]],
    ) -> None:
        self._num_running = num_running
        self._num_waiting = num_waiting

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        running, waiting = self._num_running(), self._num_waiting()
        yield _by_model("sleb_external_requests_running", "At another server.", running)
        yield _by_model("sleb_external_requests_waiting", "Here, for another server.", waiting)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by_model(name: str, text: str, values: Mapping[str, float]) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=["model_name"])
    for model, value in values.items():
        gauge.add_metric([model], value)
    return gauge


def _gpu_memory() -> Iterable[Metric]:
    """Of this process; where it uses no CUDA there are no such series."""
    if not torch.cuda.is_initialized():
        return
    allocated = GaugeMetricFamily(
        "sleb_gpu_memory_allocated_bytes", "Held by tensors of this process.", labels=["device"]
    )
    reserved = GaugeMetricFamily(
        "sleb_gpu_memory_reserved_bytes", "Held by this process altogether.", labels=["device"]
    )
    for device in range(torch.cuda.device_count()):
        allocated.add_metric([str(device)], torch.cuda.memory_allocated(device))
        reserved.add_metric([str(device)], torch.cuda.memory_reserved(device))
    yield allocated
    yield reserved


def _info_labels(entry: Entry) -> list[str]:
    removed = " ".join(str(block) for block in entry.removed_blocks)
    job_id = entry.order.name.rpartition("@")[2] if entry.order and entry.num_removed else ""
    curve = entry.order.quality.perplexities if entry.order else ()
    dtype = entry.info.dtype if entry.info else entry.order.dtype if entry.order else ""
    return [
        entry.name,
        entry.base if entry.num_removed else "",
        str(entry.num_blocks),
        removed,
        job_id,
        f"{entry.perplexity:.4f}" if entry.perplexity is not None else "",
        f"{curve[0]:.4f}" if curve else "",
        dtype,
    ]
