"""The catalog: dense models, the prefixes of their removal orders, published checkpoints."""

import asyncio
from contextlib import suppress
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from app.api.deps import GeneratorDep, ModelOrAlias, ServicesDep
from app.api.formats.models import model_view
from app.api.openapi import responses_for
from app.api.schemas.bodies import kind, view_of
from app.api.schemas.generate import AliasBody, ModelList, ModelView
from app.api.unload import RAISES, NotDeletable, delete_dense, unload
from app.engine.async_engine import EngineStopped
from app.generation.generator import GENERATOR_LOAD_RAISES
from app.models.advice import advice_on
from app.models.aliases import AliasTaken, InvalidAlias, InvalidAliasFile
from app.models.catalog import UnknownModel
from pruning.evaluation.advice import AdvisedDepth, Limits
from pruning.jobs.redis import JobStoreUnavailable
from pruning.spec import InvalidSpec

router = APIRouter(prefix="/models", tags=["models"])

Alias = Annotated[str, Path(description="The alias to set; no model has this name.")]
AliasOrDense = Annotated[str, Path(description="An alias or a dense model.")]
MaxRatio = Annotated[
    float, Query(ge=1, description="Maximum of pruned / dense perplexity, on every text.")
]
MinSpeedup = Annotated[float, Query(ge=1, description="Minimum speed-up per token.")]
MinProbe = Annotated[
    float | None, Query(ge=0, le=1, description="Minimum score of the probe; null for none.")
]


class LimitsView(BaseModel):
    max_ratio: float = Field(description="Maximum of pruned / dense perplexity, on every text.")
    min_speedup: float = Field(description="Minimum speed-up per token.")
    min_probe: float | None = Field(description="Minimum score of the probe; null for none.")


class EstimateWithEnds(BaseModel):
    value: float = Field(description="The estimate.")
    low: float | None = Field(description="Lower end of its 95 % interval; null if not known.")
    high: float | None = Field(description="Upper end of that interval.")


class AdvisedDepthView(BaseModel):
    name: str = Field(description="The name to generate with.")
    short_name: str = Field(description="The same without the model, as @-3.")
    num_removed: int = Field(description="Number of removed blocks.")
    num_blocks: int = Field(description="Number of remaining blocks.")
    speedup: EstimateWithEnds | None = Field(
        description="Time per token, dense over pruned; null if not known."
    )
    is_measured: bool = Field(description="Whether speedup was measured; else it is predicted.")
    ratios: dict[str, EstimateWithEnds] = Field(
        description="Perplexity over that of the dense model, by domain of text."
    )
    parameters: float | None = Field(
        description="Number of parameters over that of the dense model; null if not counted."
    )
    probe_score: float | None = Field(description="Score of the probe; null if not measured.")
    dense_probe_score: float | None = Field(description="The same of the dense model.")
    verdict: Literal["kept", "exceeded", "undecided"] = Field(
        description="Whether it keeps the limits, as far as intervals show."
    )
    failing: list[str] = Field(
        description="What it does not keep: speed, quality, a domain of text, or probe."
    )
    because: str = Field(description="Why it does not; empty if it does.")


class AdviceView(BaseModel):
    """Which depth of a model to take."""

    object: Literal["advice"] = kind("advice")
    model: str = Field(description="The dense model.")
    limits: LimitsView = Field(description="What a depth has to keep.")
    taken: str | None = Field(
        description="The depth to take; null if none is shown to keep the limits."
    )
    nearest: str | None = Field(
        description="The depth that the sentence describes where none is to be taken."
    )
    sentence: str = Field(description="The advice in words.")
    depths: list[AdvisedDepthView] = Field(
        description="Those of the newest removal order and healed ones, the least pruned first."
    )
    missing: list[str] = Field(description="What is not known, with the command that measures it.")


@router.get("")
def list_models(services: ServicesDep) -> ModelList:
    """All models that can be served.

    Removal orders of running jobs are included unless the job store is unavailable.
    """
    entries = services.catalog.entries()
    with suppress(JobStoreUnavailable):
        entries += services.catalog.unpublished()
    return ModelList(data=[model_view(entry, services.generation) for entry in entries])


@router.get("/{name}", responses=responses_for(UnknownModel, InvalidAliasFile, JobStoreUnavailable))
def get_model(name: ModelOrAlias, services: ServicesDep) -> ModelView:
    """A model by its name, or the target of an alias."""
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
) -> AdviceView:
    """Which depth of a model to take: the fastest one whose intervals show that it keeps limits.

    Measured speed-ups count before predicted ones. Of a variant, the advice is about its dense
    model.
    """
    advice = advice_on(name, services.catalog, Limits(max_ratio, min_speedup, min_probe))
    return view_of(AdviceView, advice, depths=[_depth_view(depth) for depth in advice.depths])


def _depth_view(depth: AdvisedDepth) -> AdvisedDepthView:
    candidate = depth.candidate
    probe = candidate.probe
    return view_of(
        AdvisedDepthView,
        candidate,
        probe_score=probe.pruned.score if probe else None,
        dense_probe_score=probe.dense.score if probe else None,
        verdict=depth.verdict.value,
        failing=depth.failing,
        because=depth.because,
    )


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
    """Make the name an alias of ``target``, or give an alias another target. Returns the target.

    The target is loaded first. Then the alias switches in one step, for every API process of the
    data directory: a request runs on the old target or on the new one, and requests in progress
    finish on theirs. ``<model>@-k`` is stored as the ``<model>@<job>-k`` that it means now, so only
    this request changes what an alias means. Metrics have the name of the target.
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
    """Remove an alias, whose target stays, or delete a dense model and its files.

    A model is not deleted while requests run on it or its variants, while a job that prunes it has
    not ended, or while an alias means it or a variant. Published checkpoints of it stay, and can
    still be served at their full depth. They are deleted with their jobs.
    """
    if await asyncio.to_thread(services.catalog.is_alias, name):
        await asyncio.to_thread(services.catalog.remove_alias, name)
    else:
        await delete_dense(name, services.generation, services.jobs.store)


@router.post("/{name}/load", responses=responses_for(*GENERATOR_LOAD_RAISES, EngineStopped))
async def load_model(
    name: ModelOrAlias, generator: GeneratorDep, services: ServicesDep
) -> ModelView:
    """Load the model and respond when it is in memory. Requests load models on demand, too."""
    served = await generator.load(name)
    return model_view(served.entry, services.generation)


@router.post("/{name}/unload", status_code=204, responses=responses_for(*RAISES))
async def unload_model(name: ModelOrAlias, services: ServicesDep) -> None:
    """Free the memory of a model and all its views, or drop the one view of this name.

    Refused while requests for any of them run or wait. The next request loads the model again.
    """
    await unload(name, services.generation)
