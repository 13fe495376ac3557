"""Metrics of models: their lineage and quality, loaded weights, and running requests."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.engine.engine import EngineStats
from app.engine.scheduling.scheduler import CacheCounts
from app.engine.variant import Variant
from app.models.entry import ModelEntry
from app.models.registry import ModelRegistry

_OF_VARIANT = ("model_name", "variant")


@dataclass(frozen=True)
class Load:
    """The requests of a model that a server of this service generates for."""

    model_name: str
    variant: str
    num_running: int
    num_waiting: int


class ModelCollector(Collector):
    """Reads the statistics of the engine, of servers and of the catalog at every scrape."""

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        registry: ModelRegistry,
        servers: Callable[[], Iterable[Load]] = tuple,
    ) -> None:
        self._stats = stats
        self._registry = registry
        self._servers = servers

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        yield from _load(stats, self._registry.loaded_variants(), self._servers())
        yield _gauge(
            "sleb_kv_cache_usage_perc", "Used share of the cache, 0 to 1.", stats.kv_cache_usage
        )
        yield from _of_cache(stats, self._registry.loaded_variants())
        yield _gauge("sleb_batch_size", "Sequences in the latest decode step.", stats.batch_size)
        caches = {name: variant.kv_cache_bytes for name, variant in stats.variants.items()}
        yield _by_model("sleb_kv_cache_bytes", "KV cache held for running sequences.", caches)
        weights = self._registry.weight_bytes()
        yield _by_model("sleb_model_weight_bytes", "Weights in memory.", weights)
        yield from _gpu_memory()
        entries = [entry for entry in self._registry.catalog.entries() if entry.error is None]
        raw = [entry.raw for entry in entries if entry.repair]  # they are not in the catalog
        entries += [entry for entry in raw if self._registry.is_loaded(entry)]
        yield from _known(entries)
        yield from _by_domain(entries)
        yield _model_info(entries)
        yield _alias_info(self._registry.catalog.aliases())


class ExternalCollector(Collector):
    """Requests for external models, by model name."""

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
        yield _by_model(
            "sleb_external_requests_running", "Requests that another server processes.", running
        )
        yield _by_model(
            "sleb_external_requests_waiting", "Requests that wait here for another server.", waiting
        )


def _load(
    stats: EngineStats, loaded: Iterable[Variant], servers: Iterable[Load]
) -> Iterable[Metric]:
    """Running and waiting sequences by variant; idle variants that are loaded have 0."""
    kinds = {variant.name: "dense" if variant.is_dense else "pruned" for variant in loaded}
    kinds = {name: "pruned" for name in stats.variants if name not in kinds} | kinds
    running = GaugeMetricFamily(
        "sleb_num_requests_running", "Sequences being generated.", labels=_OF_VARIANT
    )
    waiting = GaugeMetricFamily(
        "sleb_num_requests_waiting", "Sequences that wait for others to end.", labels=_OF_VARIANT
    )
    for name, kind in kinds.items():
        variant = stats.variants.get(name)
        running.add_metric([name, kind], variant.num_running if variant else 0)
        waiting.add_metric([name, kind], variant.num_waiting if variant else 0)
    for load in servers:
        running.add_metric([load.model_name, load.variant], load.num_running)
        waiting.add_metric([load.model_name, load.variant], load.num_waiting)
    yield running
    yield waiting


def _of_cache(stats: EngineStats, loaded: Iterable[Variant]) -> Iterable[Metric]:
    """Counters of pages, named as in vLLM. Variants that are loaded begin with 0."""
    counts = {variant.name: CacheCounts() for variant in loaded} | dict(stats.cache_counts)
    for name, text, of in (
        (
            "num_preemptions",
            "Sequences that left their pages to others.",
            attrgetter("num_preemptions"),
        ),
        ("prefix_cache_queries", "Prompt tokens that looked for pages.", attrgetter("num_queries")),
        ("prefix_cache_hits", "Prompt tokens whose pages were there.", attrgetter("num_hits")),
    ):
        counter = CounterMetricFamily(f"sleb_{name}", text, labels=["model_name"])
        for model, each in counts.items():
            counter.add_metric([model], of(each))
        yield counter


def _known(entries: Sequence[ModelEntry]) -> Iterable[Metric]:
    """Values of ``sleb_model_info`` as gauges, so that queries can compute with them."""
    for name, text, get in _NUMBERS:
        found = {entry.name: value for entry in entries if (value := get(entry)) is not None}
        yield _by_model(name, text, found)
    for name, text, get in _PERPLEXITIES:
        gauge = GaugeMetricFamily(name, text, labels=["model_name", "text"])
        for entry in entries:
            if (value := get(entry)) is not None:
                gauge.add_metric([entry.name, entry.evaluated_on or ""], value)
        yield gauge


def _by_domain(entries: Sequence[ModelEntry]) -> Iterable[Metric]:
    """Perplexities on each domain, and the interval of their ratio to the dense model's."""
    gauges = [
        GaugeMetricFamily(
            f"sleb_model_domain_{name}", text, labels=["model_name", "domain", "text"]
        )
        for name, text in _OF_DOMAIN
    ]
    for entry in entries:
        for domain in entry.domains:
            measured = entry.measured_on(domain)
            ratio = domain.ratio(measured)
            values = (measured.perplexity, domain.dense.perplexity, ratio.low, ratio.high)
            for gauge, value in zip(gauges, values, strict=True):
                if value is not None:
                    gauge.add_metric([entry.name, domain.domain, domain.text], value)
    yield from gauges


def _dense_perplexity(entry: ModelEntry) -> float | None:
    curve = entry.order.quality.perplexities if entry.order else ()
    return curve[0] if curve else None


def _dense_probe_score(entry: ModelEntry) -> float | None:
    both = entry.order.quality.probe if entry.order else None
    return both.dense.score if both and entry.probe else None


def _parameter_bytes(entry: ModelEntry) -> int | None:
    count = entry.num_parameters
    return None if count is None else count * _itemsize(entry.dtype)


_NUMBERS: Sequence[tuple[str, str, Callable[[ModelEntry], float | None]]] = (
    ("sleb_model_num_blocks", "Blocks of the model.", lambda entry: entry.num_blocks),
    ("sleb_model_parameter_bytes", "Weights of the model when not shared.", _parameter_bytes),
    (
        "sleb_model_probe_score",
        "Score on the probe, 0 to 1.",
        lambda entry: entry.probe.score if entry.probe else None,
    ),
    ("sleb_model_dense_probe_score", "Probe score of its dense parent.", _dense_probe_score),
    (
        "sleb_model_zero_shot_accuracy",
        "Mean accuracy over five tasks, 0 to 1.",
        lambda entry: entry.zero_shot,
    ),
)
_PERPLEXITIES: Sequence[tuple[str, str, Callable[[ModelEntry], float | None]]] = (
    ("sleb_model_perplexity", "Perplexity on the held-out text.", lambda entry: entry.perplexity),
    ("sleb_model_dense_perplexity", "Perplexity of its dense parent.", _dense_perplexity),
    (
        "sleb_model_quantized_perplexity",
        "Perplexity with quantized weights.",
        lambda entry: entry.quantized.perplexity if entry.quantized else None,
    ),
)
_OF_DOMAIN = (
    ("perplexity", "Perplexity on held-out text of the domain."),
    ("dense_perplexity", "Perplexity of its dense parent on that text."),
    ("perplexity_ratio_low", "Lower end of the 95 % interval of pruned over dense perplexity."),
    ("perplexity_ratio_high", "Upper end of that interval."),
)


def _model_info(entries: Iterable[ModelEntry]) -> Metric:
    names = ["model_name", "parent", "num_blocks", "removed_blocks", "job_id"]
    names += ["perplexity", "dense_perplexity", "evaluated_on", "dtype"]
    info = GaugeMetricFamily("sleb_model_info", "Lineage and quality, always 1.", labels=names)
    for entry in entries:
        info.add_metric(_info_labels(entry), 1)
    return info


def _alias_info(aliases: Mapping[str, str]) -> Metric:
    info = GaugeMetricFamily(
        "sleb_model_alias_info",
        "Aliases and their targets, always 1.",
        labels=["alias", "model_name"],
    )
    for alias, target in aliases.items():
        info.add_metric([alias, target], 1)
    return info


def _info_labels(entry: ModelEntry) -> list[str]:
    removed = " ".join(str(block) for block in entry.removed_blocks)
    job_id = entry.order.job_id if entry.order and entry.is_pruned else None
    curve = entry.order.quality.perplexities if entry.order else ()
    return [
        entry.name,
        entry.parent or "",
        str(entry.num_blocks),
        removed,
        job_id or "",
        f"{entry.perplexity:.4f}" if entry.perplexity is not None else "",
        f"{curve[0]:.4f}" if curve else "",
        entry.evaluated_on or "",
        entry.dtype or "",
    ]


def _itemsize(dtype: str | None) -> int:
    """Bytes per number of a dtype; that of float32 if unknown."""
    found = getattr(torch, dtype or "float32", torch.float32)
    return found.itemsize if isinstance(found, torch.dtype) else torch.float32.itemsize


def _gpu_memory() -> Iterable[Metric]:
    """GPU memory of this process. There are no series if it does not use CUDA."""
    if not torch.cuda.is_initialized():
        return
    allocated = GaugeMetricFamily(
        "sleb_gpu_memory_allocated_bytes", "GPU memory held by tensors.", labels=["device"]
    )
    reserved = GaugeMetricFamily(
        "sleb_gpu_memory_reserved_bytes", "GPU memory held by the process.", labels=["device"]
    )
    for device in range(torch.cuda.device_count()):
        allocated.add_metric([str(device)], torch.cuda.memory_allocated(device))
        reserved.add_metric([str(device)], torch.cuda.memory_reserved(device))
    yield allocated
    yield reserved


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by_model(name: str, text: str, values: Mapping[str, float]) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=["model_name"])
    for model, value in values.items():
        gauge.add_metric([model], value)
    return gauge
