"""The response bodies of a model in the catalog."""

from typing import Any, Literal

from app.api.deps import GenerationServices
from app.api.schemas.bodies import view_of
from app.api.schemas.generate import DomainView, Int8View, ModelView, RepairView
from app.models.entry import ModelEntry
from app.models.registry import ModelRegistry
from app.vllm.servers import VllmServers
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointNotFound
from pruning.evaluation.quality import Compared, DomainAtDepth, Interval
from pruning.models.store import NotAModel


def model_view(entry: ModelEntry, generation: GenerationServices) -> ModelView:
    registry = generation.registry
    aliases = registry.catalog.aliases()
    order = entry.order
    quality = order.quality if order else None
    curve = quality.perplexities if quality else ()
    return view_of(
        ModelView,
        entry,
        id=entry.name,
        aliases=[name for name, target in aliases.items() if target == entry.pinned_name],
        variant=entry.kind,
        losses=quality.losses[: entry.num_removed + 1] if quality else [],
        measured_speedup=registry.catalog.measured_speedup(entry),
        dense_perplexity=curve[0] if curve else None,
        probe_score=entry.probe.score if entry.probe else None,
        dense_probe_score=quality.probe.dense.score if quality and quality.probe else None,
        tasks=registry.catalog.tasks(entry),
        quantized_weights=entry.quantized.weights if entry.quantized else None,
        quantized_perplexity=entry.quantized.perplexity if entry.quantized else None,
        warnings=quality.warnings if quality and entry.is_whole_checkpoint else [],
        domains=domain_views(entry),
        checkpoint=order.name if order and entry.is_pruned and order.is_published else None,
        repair=repair_view(entry),
        int8=_int8_view(entry, registry),
        max_positions=entry.info.max_positions if entry.info else None,
        weight_bytes=registry.bytes_of(entry),
        kv_cache_bytes=_kv_cache_bytes(entry, generation),
        **_serving(entry, registry, generation.vllm),
    )


def _serving(
    entry: ModelEntry, registry: ModelRegistry, vllm: VllmServers | None
) -> dict[str, Any]:
    """What generates for the model, and whether it is ready to."""
    server = None if vllm is None else vllm.state(entry)
    return {
        "backend": _backend(entry, vllm),
        "error": error_of(entry, vllm),
        "server": server,
        "is_loaded": registry.is_loaded(entry) if server is None else server.state == "ready",
    }


def _backend(entry: ModelEntry, vllm: VllmServers | None) -> Literal["engine", "vllm", "openai"]:
    if entry.external is not None:
        return entry.external.backend
    return "vllm" if vllm is not None and vllm.serves(entry) else "engine"


def error_of(entry: ModelEntry, vllm: VllmServers | None) -> str | None:
    """Why the model cannot be served: some families are known to vLLM alone."""
    return None if vllm is not None and vllm.serves(entry) else entry.error


def domain_views(entry: ModelEntry) -> list[DomainView]:
    """One view for each domain that the model was measured on."""
    return [_domain_view(entry, domain.at_depth(entry.num_removed)) for domain in entry.domains]


def _domain_view(entry: ModelEntry, domain: DomainAtDepth) -> DomainView:
    served = domain.raw if entry.is_raw else domain.healed or domain.repaired or domain.raw
    share = domain.healed_share if domain.healed else domain.recovered
    repaired, control = (None, None) if entry.is_raw else (domain.repaired, domain.control)
    return view_of(
        DomainView,
        domain,
        **interval_fields("dense_perplexity", domain.dense),
        **_compared("", served),
        **_compared("raw_", domain.raw),
        **_compared("repaired_", repaired),
        **_compared("control_", control),
        recovered=None if entry.is_raw else share,
    )


def _compared(prefix: str, compared: Compared | None) -> dict[str, float | None]:
    """The fields that begin with ``prefix``: a perplexity, and its ratio to the dense model's."""
    perplexity, ratio = (compared.perplexity, compared.ratio) if compared else (None, None)
    return {f"{prefix}perplexity": perplexity, **interval_fields(f"{prefix}ratio", ratio)}


def interval_fields(name: str, interval: Interval | None) -> dict[str, float | None]:
    """The fields of an interval: ``name`` itself is the estimate."""
    ends = (interval.value, interval.low, interval.high) if interval else (None, None, None)
    return dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))


def repair_view(entry: ModelEntry) -> RepairView | None:
    """None for a variant that is served unrepaired."""
    if entry.repair is None:
        return None
    order = entry.order if entry.shares_healed_blocks else None
    return RepairView(
        method=entry.repair.method,
        bytes=entry.repair.num_bytes,
        shared_bytes=(order.shared_bytes or 0) if order else 0,
        raw=entry.raw.name,
        is_healed=entry.repair.is_healed,
    )


def _int8_view(entry: ModelEntry, registry: ModelRegistry) -> Int8View | None:
    """None if there is no such form, or if the files are damaged, which loading them reports."""
    try:
        num_bytes = None if entry.is_int8 else registry.int8_bytes(entry)
    except (NotAModel, CheckpointNotFound, CheckpointCorrupt, OSError):
        return None
    return None if num_bytes is None else Int8View(id=entry.int8.name, weight_bytes=num_bytes)


def _kv_cache_bytes(entry: ModelEntry, generation: GenerationServices) -> int:
    variant = generation.registry.variant(entry)
    running = generation.engine.stats().variants.get(variant.name) if variant else None
    return running.kv_cache_bytes if running else 0
