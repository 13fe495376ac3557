"""Metrics of models: their lineage and quality, loaded weights, and running requests."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter

import torch
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.engine.engine import EngineStats, VariantStats
from app.engine.scheduling.scheduler import CacheCounts
from app.engine.variant import Variant
from app.metrics.metrics import gauge
from app.models.entry import ModelEntry
from app.models.registry import ModelRegistry
from pruning.evaluation.task_shares import TaskShares

_OF_VARIANT = ("model_name", "variant")


@dataclass(frozen=True)
class Load:
    """The requests of a model that another server or one of this service generates for."""

    model_name: str
    variant: str
    num_running: int
    num_waiting: int


@dataclass(frozen=True, eq=False)
class ModelCollector(Collector):
    """Reads the statistics of the engine, of servers and of the catalog at every scrape.

    ``servers`` are those of this service, ``external`` the others.
    """

    stats: Callable[[], EngineStats]
    registry: ModelRegistry
    servers: Callable[[], Iterable[Load]] = tuple
    external: Callable[[], Sequence[Load]] = tuple

    def collect(self) -> Iterable[Metric]:
        stats = self.stats()
        yield from _load(stats, self.registry.loaded_variants(), self.servers())
        yield GaugeMetricFamily(
            "sleb_kv_cache_usage_perc",
            "Used share of the cache, 0 to 1.",
            value=stats.kv_cache_usage,
        )
        yield from _of_cache(stats, self.registry.loaded_variants())
        yield CounterMetricFamily(
            "sleb_kv_cache_rebuilds",
            "Caches that were rebuilt, as the account of their pages was wrong.",
            value=stats.num_rebuilds,
        )
        yield GaugeMetricFamily(
            "sleb_batch_size", "Sequences in the latest decode step.", value=stats.batch_size
        )
        caches = {variant.name: 0 for variant in self.registry.loaded_variants()}
        caches |= {name: variant.kv_cache_bytes for name, variant in stats.variants.items()}
        yield _by_model("sleb_kv_cache_bytes", "KV cache held for running sequences.", caches)
        weights = self.registry.weight_bytes()
        yield _by_model("sleb_model_weight_bytes", "Weights in memory.", weights)
        yield from _gpu_memory()
        entries = [entry for entry in self.registry.catalog.entries() if entry.error is None]
        raw = [entry.raw for entry in entries if entry.repair]  # they are not in the catalog
        entries += [entry for entry in raw if self.registry.is_loaded(entry)]
        yield from _known(entries)
        yield from _by_domain(entries)
        yield _model_info(entries)
        aliases = ((names, 1) for names in self.registry.catalog.aliases().items())
        text, names = "Aliases and their targets, always 1.", ["alias", "model_name"]
        yield gauge("sleb_model_alias_info", text, names, aliases)
        yield from _external_load(self.external())


def _load(
    stats: EngineStats, loaded: Iterable[Variant], servers: Iterable[Load]
) -> Iterable[Metric]:
    """Running and waiting sequences by variant; idle variants that are loaded have 0."""
    kinds = {variant.name: "dense" if variant.is_dense else "pruned" for variant in loaded}
    kinds = {name: "pruned" for name in stats.variants if name not in kinds} | kinds
    idle = VariantStats(num_running=0, num_waiting=0, kv_cache_bytes=0)
    loads: list[tuple[tuple[str, str], VariantStats | Load]] = [
        ((name, kind), stats.variants.get(name, idle)) for name, kind in kinds.items()
    ]
    loads += [((load.model_name, load.variant), load) for load in servers]
    yield gauge(
        "sleb_num_requests_running",
        "Sequences being generated.",
        _OF_VARIANT,
        ((of, load.num_running) for of, load in loads),
    )
    yield gauge(
        "sleb_num_requests_waiting",
        "Sequences that wait for others to end.",
        _OF_VARIANT,
        ((of, load.num_waiting) for of, load in loads),
    )


def _external_load(loads: Sequence[Load]) -> Iterable[Metric]:
    running = {load.model_name: load.num_running for load in loads}
    waiting = {load.model_name: load.num_waiting for load in loads}
    yield _by_model(
        "sleb_external_requests_running", "Requests that another server processes.", running
    )
    yield _by_model(
        "sleb_external_requests_waiting", "Requests that wait here for another server.", waiting
    )


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
        yield _by_model(name, text, {entry.name: get(entry) for entry in entries})
    for name, text, get in _PERPLEXITIES:
        values = (((entry.name, entry.evaluated_on or ""), get(entry)) for entry in entries)
        yield gauge(name, text, ["model_name", "text"], values)


def _by_domain(entries: Sequence[ModelEntry]) -> Iterable[Metric]:
    """Perplexities on each domain, and the interval of their ratio to the dense model's."""
    rows_of = []
    for entry in entries:
        for domain in entry.domains:
            measured = entry.measured_on(domain)
            ratio = domain.ratio(measured)
            values = (measured.perplexity, domain.dense.perplexity, ratio.low, ratio.high)
            rows_of.append(((entry.name, domain.domain, domain.text), values))
    labels = ["model_name", "domain", "text"]
    for number, (name, text) in enumerate(_OF_DOMAIN):
        rows = ((of, values[number]) for of, values in rows_of)
        yield gauge(f"sleb_model_domain_{name}", text, labels, rows)


def _dense_perplexity(entry: ModelEntry) -> float | None:
    curve = entry.order.quality.perplexities if entry.order else ()
    return curve[0] if curve else None


def _dense_probe_score(entry: ModelEntry) -> float | None:
    both = entry.order.quality.probe if entry.order else None
    return both.dense.score if both and entry.probe else None


def _task_share(entry: ModelEntry) -> float | None:
    shares = TaskShares.of(entry.tasks)
    return shares.share.value if shares and shares.share else None


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
        "sleb_model_task_share",
        "Share of the dense accuracy above chance on tasks.",
        _task_share,
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
    rows = ((_info_labels(entry), 1) for entry in entries)
    return gauge("sleb_model_info", "Lineage and quality, always 1.", names, rows)


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
    kind = getattr(torch, dtype or "float32", torch.float32)
    return kind.itemsize if isinstance(kind, torch.dtype) else torch.float32.itemsize


def _gpu_memory() -> Iterable[Metric]:
    """GPU memory of this process. There are no series if it does not use CUDA."""
    if not torch.cuda.is_initialized():
        return
    for name, text, num_bytes in (
        ("allocated", "GPU memory held by tensors.", torch.cuda.memory_allocated),
        ("reserved", "GPU memory held by the process.", torch.cuda.memory_reserved),
    ):
        values = (([str(one)], num_bytes(one)) for one in range(torch.cuda.device_count()))
        yield gauge(f"sleb_gpu_memory_{name}_bytes", text, ["device"], values)


def _by_model(name: str, text: str, values: Mapping[str, float | None]) -> Metric:
    return gauge(name, text, ["model_name"], (([model], value) for model, value in values.items()))
