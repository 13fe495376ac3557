"""Letting go of models in memory, but not under the requests that run on them."""

import asyncio

from app.compare.shadow import Shadow
from app.engine.async_engine import AsyncEngine
from app.models.catalog import UnknownModel
from app.models.registry import ModelRegistry
from app.models.weights import WeightsLoading
from pruning.jobs.redis import JobStoreUnavailable
from pruning.models.memory import give_back


class ModelInUse(RuntimeError):
    """Requests need what is to be unloaded."""


RAISES = (UnknownModel, ModelInUse, WeightsLoading, JobStoreUnavailable)


async def unload(
    name: str, registry: ModelRegistry, engine: AsyncEngine, shadow: Shadow | None
) -> None:
    """Free the memory of a model and all views of it, or drop the one view that this name is.

    A request that has found the model, but is not in the engine yet, ends on what it holds.
    Raises what ``ModelRegistry.find`` does, ``WeightsLoading`` or ``ModelInUse``.
    """
    entry = await asyncio.to_thread(registry.find, name)
    # Nothing is awaited between the look and the deed, so no request gets in between.
    variants = registry.variants(entry)
    if num_open := engine.num_open(variants):
        raise ModelInUse(
            f"{num_open} requests for {name!r} or its views are running or waiting: unload it when "
            f"they have ended"
        )
    registry.drop(entry)
    if shadow is not None:
        await shadow.forget(variants)
    await asyncio.to_thread(give_back)
