"""The catalog: dense models, the prefixes of their removal orders, published checkpoints."""

import asyncio
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Path, Query

from app.api.deps import GeneratorDep, ModelOrAlias, ServicesDep
from app.api.formats.advice import advice_view
from app.api.formats.models import model_view
from app.api.openapi import responses_for
from app.api.schemas.advice import AdviceView
from app.api.schemas.generate import AliasBody, ModelList, ModelView
from app.api.unload import RAISES, NotDeletable, delete_dense, unload
from app.engine.async_engine import EngineStopped
from app.generation.generator import GENERATOR_LOAD_RAISES
from app.models.advice import advice_on
from app.models.aliases import AliasTaken, InvalidAlias, InvalidAliasFile
from app.models.catalog import UnknownModel
from pruning.evaluation.limits import Limits
from pruning.jobs.redis import JobStoreUnavailable
from pruning.spec import InvalidSpec

router = APIRouter(prefix="/models", tags=["models"])

Alias = Annotated[str, Path(description="Name of the alias; must not be the name of a model.")]
AliasOrDense = Annotated[str, Path(description="An alias or a dense model.")]
MaxRatio = Annotated[
    float, Query(ge=1, description="Maximum perplexity relative to the dense model, on every text.")
]
MinSpeedup = Annotated[float, Query(ge=1, description="Minimum speed-up per token.")]
MinProbe = Annotated[
    float | None, Query(ge=0, le=1, description="Minimum probe score; null for no limit.")
]
MinTaskShare = Annotated[
    float | None,
    Query(
        ge=0,
        le=1,
        description="Minimum share of the dense model's accuracy above chance on zero-shot tasks; "
        "null for no limit.",
    ),
]
MainLoad = Annotated[
    str | None,
    Query(
        max_length=32,
        description="The load that the answer begins with and the speed-ups are of: one of the "
        "`loads` of the answer, such as stream, 8 or prompt. Default: the first of them.",
    ),
]


@router.get("")
def list_models(services: ServicesDep) -> ModelList:
    """List all models that can be served.

    Removal orders of running jobs are included unless the job store is unavailable.
    """
    entries = services.catalog.entries()
    with suppress(JobStoreUnavailable):
        entries += services.catalog.unpublished()
    return ModelList(data=[model_view(entry, services.generation) for entry in entries])


@router.get("/{name}", responses=responses_for(UnknownModel, InvalidAliasFile, JobStoreUnavailable))
def get_model(name: ModelOrAlias, services: ServicesDep) -> ModelView:
    """Return a model by its name or alias."""
    return model_view(services.catalog.resolve(name), services.generation)


@router.get(
    "/{name}/advice",
    responses=responses_for(UnknownModel, InvalidAliasFile, JobStoreUnavailable, InvalidSpec),
)
def get_advice(
    name: ModelOrAlias,
    services: ServicesDep,
    max_ratio: MaxRatio = Limits.max_ratio,
    min_speedup: MinSpeedup = Limits.min_speedup,
    min_probe: MinProbe = Limits.min_probe,
    min_task_share: MinTaskShare = Limits.min_task_share,
    load: MainLoad = None,
) -> AdviceView:
    """Say what to take of a dense model, from what is known of int8 weights and of all its depths.

    At each load, it is the fastest candidate whose intervals meet the limits. Measured speed-ups
    take precedence over predicted ones. For an alias, the answer is about the dense model behind
    it.
    """
    limits = Limits(max_ratio, min_speedup, min_probe, min_task_share)
    return advice_view(advice_on(name, services.catalog, limits, load))


@router.put(
    "/{name}",
    responses=responses_for(
        *GENERATOR_LOAD_RAISES,
        EngineStopped,
        AliasTaken,
        InvalidAlias,
        InvalidAliasFile,
        has_body=True,
    ),
)
async def set_alias(
    name: Alias, body: AliasBody, generator: GeneratorDep, services: ServicesDep
) -> ModelView:
    """Create an alias for ``target``, or change the target of an alias. Returns the target.

    The target is loaded first. Then the alias switches atomically for all API processes of the
    data directory: each request runs on either the old or the new target, and requests in progress
    finish on theirs. ``<model>@-k`` is stored as the ``<model>@<job>-k`` that it currently refers
    to, so only this request changes the target of an alias. Metrics use the name of the target.
    """
    await generator.load(body.target)
    entry = await asyncio.to_thread(services.catalog.set_alias, name, body.target)
    return model_view(entry, services.generation)


@router.delete(
    "/{name}",
    status_code=204,
    responses=responses_for(*RAISES, NotDeletable, InvalidAliasFile),
)
async def delete_model(name: AliasOrDense, services: ServicesDep) -> None:
    """Remove an alias (its target stays), or delete a dense model and its files.

    A model is not deleted while requests use it or its variants, while an unfinished job prunes
    it, or while an alias refers to it or a variant. Its published checkpoints stay and can still
    be served at their full depth; they are deleted with their jobs.
    """
    if await asyncio.to_thread(services.catalog.is_alias, name):
        await asyncio.to_thread(services.catalog.remove_alias, name)
    else:
        await delete_dense(name, services.generation, services.jobs.store)


@router.post("/{name}/load", responses=responses_for(*GENERATOR_LOAD_RAISES, EngineStopped))
async def load_model(
    name: ModelOrAlias, generator: GeneratorDep, services: ServicesDep
) -> ModelView:
    """Load a model, and respond when it is in memory. Generation requests also load models on
    demand.
    """
    served = await generator.load(name)
    return model_view(served.entry, services.generation)


@router.post("/{name}/unload", status_code=204, responses=responses_for(*RAISES))
async def unload_model(name: ModelOrAlias, services: ServicesDep) -> None:
    """Unload a model and all its views, or only the view of this name.

    Rejected while any of them has running or waiting requests. The next request loads the model
    again.
    """
    await unload(name, services.generation)
