"""The catalogue: dense models, the prefixes of their removal orders, published checkpoints."""

from contextlib import suppress
from typing import Literal

from fastapi import APIRouter

from app.catalog import Entry, UnknownModel
from app.deps import CatalogDep, ServicesDep
from app.errors import described
from app.registry import ModelRegistry
from app.schemas import ModelList, ModelView
from pruning.outage import JobStoreUnavailable

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(catalog: CatalogDep, services: ServicesDep) -> ModelList:
    """What is published, and what jobs have found so far unless the job store is away."""
    entries = catalog.entries()
    with suppress(JobStoreUnavailable):
        entries += catalog.unpublished()
    return ModelList(data=[model_view(entry, services.registry) for entry in entries])


@router.get("/{name}", name="get_model", responses=described(UnknownModel, JobStoreUnavailable))
def get_model(name: str, catalog: CatalogDep, services: ServicesDep) -> ModelView:
    return model_view(catalog.resolve(name), services.registry)


def variant_kind(entry: Entry) -> Literal["dense", "pruned"]:
    return "pruned" if entry.num_removed else "dense"


def model_view(entry: Entry, registry: ModelRegistry) -> ModelView:
    order = entry.order
    quality = order.quality if order else None
    curve = quality.perplexities if quality else ()
    return ModelView(
        id=entry.name,
        variant=variant_kind(entry),
        parent=entry.base if entry.num_removed else None,
        num_blocks=entry.num_blocks,
        removed_blocks=list(entry.removed_blocks),
        losses=list(quality.losses[: entry.num_removed + 1]) if quality else [],
        perplexity=entry.perplexity,
        dense_perplexity=curve[0] if curve else None,
        evaluated_on=(quality.evaluated_on or None) if quality else None,
        num_parameters=_num_parameters(entry),
        checkpoint=order.name if order and entry.num_removed and order.is_published else None,
        is_published=entry.is_published,
        dtype=entry.info.dtype if entry.info else order.dtype if order else None,
        max_positions=entry.info.max_positions if entry.info else None,
        is_loaded=registry.is_loaded(entry),
        error=entry.error,
    )


def _num_parameters(entry: Entry) -> int | None:
    """Exact: all blocks of the supported families are of one size."""
    order = entry.order
    if order is None or order.num_parameters is None or order.dense_num_parameters is None:
        return None
    per_block = (order.dense_num_parameters - order.num_parameters) // order.depth
    return order.dense_num_parameters - per_block * entry.num_removed
