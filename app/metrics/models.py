"""Metrics of models: their lineage and quality, loaded weights, and running requests."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.engine.engine import EngineStats
from app.engine.variant import Variant
from app.models.entry import ModelEntry
from app.models.registry import ModelRegistry

_OF_VARIANT = ("model_name", "variant")


class ModelCollector(Collector):
    """Reads the engine's figures and the catalogue at every scrape."""

    def __init__(self, stats: Callable[[], EngineStats], registry: ModelRegistry) -> None:
        self._stats = stats
        self._registry = registry

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        stats = self._stats()
        yield from _load(stats, self._registry.loaded_variants())
        yield _gauge(
            "sleb_kv_cache_usage_perc", "Share of the cache, 0 to 1.", stats.kv_cache_usage
        )
        yield _gauge("sleb_batch_size", "Sequences in the latest decode step.", stats.batch_size)
        caches = {name: its.kv_cache_bytes for name, its in stats.variants.items()}
        yield _by_model("sleb_kv_cache_bytes", "Held for its running sequences.", caches)
        weights = self._registry.weight_bytes()
        yield _by_model("sleb_model_weight_bytes", "Weights in memory.", weights)
        yield from _gpu_memory()
        entries = [its for its in self._registry.catalog.entries() if its.error is None]
        yield from _known(entries)
        yield _model_info(entries)


class ExternalCollector(Collector):
    """Of models that other servers generate for, by name."""

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


def _load(stats: EngineStats, loaded: Iterable[Variant]) -> Iterable[Metric]:
    """Include idle variants that are loaded, with 0."""
    kinds = {its.name: "dense" if its.is_dense else "pruned" for its in loaded}
    kinds = {name: "pruned" for name in stats.variants if name not in kinds} | kinds
    running = GaugeMetricFamily(
        "sleb_num_requests_running", "Sequences being generated.", labels=_OF_VARIANT
    )
    waiting = GaugeMetricFamily(
        "sleb_num_requests_waiting", "Sequences without a slot.", labels=_OF_VARIANT
    )
    for name, kind in kinds.items():
        its = stats.variants.get(name)
        running.add_metric([name, kind], its.num_running if its else 0)
        waiting.add_metric([name, kind], its.num_waiting if its else 0)
    yield running
    yield waiting


def _known(entries: Sequence[ModelEntry]) -> Iterable[Metric]:
    """Numbers, where labels of ``sleb_model_info`` could not be reckoned with."""
    for name, text, get in _NUMBERS:
        found = {its.name: number for its in entries if (number := get(its)) is not None}
        yield _by_model(name, text, found)


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
    ("sleb_model_num_blocks", "Blocks that it has.", lambda its: its.num_blocks),
    ("sleb_model_perplexity", "On the held-out text of its job.", lambda its: its.perplexity),
    ("sleb_model_dense_perplexity", "Of its dense parent on that text.", _dense_perplexity),
    ("sleb_model_parameter_bytes", "Its weights, if it were alone.", _parameter_bytes),
    (
        "sleb_model_probe_score",
        "Share of the probe, 0 to 1.",
        lambda its: its.probe.score if its.probe else None,
    ),
    ("sleb_model_dense_probe_score", "Of its dense parent, likewise.", _dense_probe_score),
    ("sleb_model_zero_shot_accuracy", "Mean of five tasks, 0 to 1.", lambda its: its.zero_shot),
    (
        "sleb_model_quantized_perplexity",
        "With weights of few bits.",
        lambda its: its.quantized.perplexity if its.quantized else None,
    ),
)


def _model_info(entries: Iterable[ModelEntry]) -> Metric:
    names = ["model_name", "parent", "num_blocks", "removed_blocks", "job_id"]
    names += ["perplexity", "dense_perplexity", "dtype"]
    info = GaugeMetricFamily("sleb_model_info", "Lineage and quality, always 1.", labels=names)
    for entry in entries:
        info.add_metric(_info_labels(entry), 1)
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
        entry.dtype or "",
    ]


def _itemsize(dtype: str | None) -> int:
    """Bytes of a number; 4 where nothing is said, as torch has it."""
    found = getattr(torch, dtype or "float32", torch.float32)
    return found.itemsize if isinstance(found, torch.dtype) else torch.float32.itemsize


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


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _by_model(name: str, text: str, values: Mapping[str, float]) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=["model_name"])
    for model, value in values.items():
        gauge.add_metric([model], value)
    return gauge
