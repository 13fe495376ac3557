"""The catalogue: dense models, the prefixes of their removal orders, published checkpoints."""

from contextlib import suppress

from fastapi import APIRouter

from app.api.deps import CatalogDep, EngineDep, GeneratorDep, RegistryDep, ShadowDep
from app.api.formats.models import model_view
from app.api.openapi import responses_for
from app.api.schemas.generate import ModelList, ModelView
from app.api.unload import RAISES, unload
from app.engine.async_engine import EngineStopped
from app.models.catalog import UnknownModel
from app.models.registry import LOAD_RAISES
from pruning.jobs.redis import JobStoreUnavailable

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(catalog: CatalogDep, registry: RegistryDep, engine: EngineDep) -> ModelList:
    """All models that can be served.

    Removal orders of running jobs are included unless the job store is unavailable.
    """
    entries = catalog.entries()
    with suppress(JobStoreUnavailable):
        entries += catalog.unpublished()
    return ModelList(data=[model_view(entry, registry, engine) for entry in entries])


@router.get("/{name}", name="get_model", responses=responses_for(UnknownModel, JobStoreUnavailable))
def get_model(name: str, registry: RegistryDep, engine: EngineDep) -> ModelView:
    return model_view(registry.catalog.resolve(name), registry, engine)


@router.post("/{name}/load", responses=responses_for(*LOAD_RAISES, EngineStopped))
async def load_model(
    name: str, generator: GeneratorDep, registry: RegistryDep, engine: EngineDep
) -> ModelView:
    """Load the model and respond when it is in memory. Requests load models on demand, too."""
    served = await generator.load(name)
    return model_view(served.entry, registry, engine)


@router.post("/{name}/unload", status_code=204, responses=responses_for(*RAISES))
async def unload_model(
    name: str, registry: RegistryDep, engine: EngineDep, shadow: ShadowDep
) -> None:
    """Free the memory of a model and all its views, or drop the one view of this name.

    Refused while requests for any of them run or wait. The next request loads the model again.
    """
    await unload(name, registry, engine, shadow)
