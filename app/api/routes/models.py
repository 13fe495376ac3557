"""The catalogue: dense models, the prefixes of their removal orders, published checkpoints."""

from contextlib import suppress

from fastapi import APIRouter

from app.api.deps import CatalogDep, EngineDep, GeneratorDep, RegistryDep, ShadowDep
from app.api.errors import described
from app.api.schemas.generate import ModelList, ModelView
from app.api.unload import ModelInUse, unload
from app.engine.async_engine import AsyncEngine, EngineStopped
from app.models.catalog import UnknownModel
from app.models.entry import ModelEntry
from app.models.registry import ModelRegistry, ModelReplaced
from app.models.weights import NoRoomForWeights, WeightsLoading
from pruning.checkpoints.store import CheckpointCorrupt
from pruning.jobs.redis import JobStoreUnavailable
from pruning.models.store import NotAModel

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(catalog: CatalogDep, registry: RegistryDep, engine: EngineDep) -> ModelList:
    """What is published, and what jobs have found so far unless the job store is away."""
    entries = catalog.entries()
    with suppress(JobStoreUnavailable):
        entries += catalog.unpublished()
    return ModelList(data=[model_view(entry, registry, engine) for entry in entries])


@router.get("/{name}", name="get_model", responses=described(UnknownModel, JobStoreUnavailable))
def get_model(name: str, registry: RegistryDep, engine: EngineDep) -> ModelView:
    return model_view(registry.catalog.resolve(name), registry, engine)


@router.post(
    "/{name}/load",
    responses=described(
        UnknownModel,
        NotAModel,
        CheckpointCorrupt,
        ModelReplaced,
        NoRoomForWeights,
        EngineStopped,
        JobStoreUnavailable,
    ),
)
async def load_model(
    name: str, generator: GeneratorDep, registry: RegistryDep, engine: EngineDep
) -> ModelView:
    """Answers when the model is in memory, at once if it is; requests load it by themselves too."""
    served = await generator.load(name)
    return model_view(served.entry, registry, engine)


@router.post(
    "/{name}/unload",
    status_code=204,
    responses=described(UnknownModel, ModelInUse, WeightsLoading, JobStoreUnavailable),
)
async def unload_model(
    name: str, registry: RegistryDep, engine: EngineDep, shadow: ShadowDep
) -> None:
    """Free the memory of a model and all its views, or drop the one view that this name is.

    Refused while requests for any of them run or wait. The next request loads it again.
    """
    await unload(name, registry, engine, shadow)


def model_view(entry: ModelEntry, registry: ModelRegistry, engine: AsyncEngine) -> ModelView:
    order = entry.order
    quality = order.quality if order else None
    curve = quality.perplexities if quality else ()
    return ModelView(
        id=entry.name,
        variant=entry.kind,
        backend=entry.external.backend if entry.external else "engine",
        parent=entry.parent,
        num_blocks=entry.num_blocks,
        removed_blocks=list(entry.removed_blocks),
        losses=list(quality.losses[: entry.num_removed + 1]) if quality else [],
        perplexity=entry.perplexity,
        dense_perplexity=curve[0] if curve else None,
        probe_score=entry.probe.score if entry.probe else None,
        dense_probe_score=quality.probe.dense.score if quality and quality.probe else None,
        zero_shot=entry.zero_shot,
        dense_zero_shot=quality.zero_shot.dense_mean if quality and quality.zero_shot else None,
        quantized_weights=entry.quantized.weights if entry.quantized else None,
        quantized_perplexity=entry.quantized.perplexity if entry.quantized else None,
        warnings=list(quality.warnings) if quality and entry.is_whole_checkpoint else [],
        evaluated_on=(quality.evaluated_on or None) if quality else None,
        num_parameters=entry.num_parameters,
        checkpoint=order.name if order and entry.is_pruned and order.is_published else None,
        is_published=entry.is_published,
        dtype=entry.dtype,
        max_positions=entry.info.max_positions if entry.info else None,
        is_loaded=registry.is_loaded(entry),
        weight_bytes=registry.weight_bytes().get(entry.name, 0),
        kv_cache_bytes=_kv_cache_bytes(entry, registry, engine),
        error=entry.error,
    )


def _kv_cache_bytes(entry: ModelEntry, registry: ModelRegistry, engine: AsyncEngine) -> int:
    variant = registry.variant(entry)
    running = engine.stats().variants.get(variant.name) if variant else None
    return running.kv_cache_bytes if running else 0
