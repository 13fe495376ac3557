"""Unloading models that no request uses."""

import asyncio

from app.api.deps import GenerationServices
from app.compare.shadow import Shadow
from app.models.catalog import UnknownModel
from app.models.entry import ModelEntry
from app.models.weights import WeightsLoading
from app.vllm.servers import VllmServers
from pruning.jobs.redis import JobStoreUnavailable
from pruning.models.memory import empty_cache


class ModelInUse(RuntimeError):
    """Requests use the model."""


RAISES = (UnknownModel, ModelInUse, WeightsLoading, JobStoreUnavailable)


async def unload(name: str, generation: GenerationServices) -> None:
    """Free the memory of a model and all views of it, or drop the one view that this name is.

    In vLLM, each name has weights of its own, and its server is stopped.

    A request that resolved the model but is not in the engine yet runs on its own reference.
    Raises what ``ModelRegistry.find`` does, ``WeightsLoading`` or ``ModelInUse``.
    """
    registry, shadow = generation.registry, generation.shadow
    entry = await asyncio.to_thread(registry.find, name)
    if generation.vllm is not None:
        await _stop_vllm(entry, generation.vllm, shadow)
    # There is no await between check and drop, so no request can start in between.
    variants = registry.variants(entry)
    if num_open := generation.engine.num_open(variants):
        raise ModelInUse(
            f"requests for {name!r} or its views are running or waiting, {num_open} in all: unload "
            f"it when they have ended"
        )
    registry.drop(entry)
    if shadow is not None:
        await shadow.forget(variants)
    # no reference cycle holds a model: no collection is needed
    await asyncio.to_thread(empty_cache)


async def _stop_vllm(entry: ModelEntry, vllm: VllmServers, shadow: Shadow | None) -> None:
    """Stop the vLLM of exactly this entry, if there is one. Raises ``ModelInUse``."""
    if shadow is not None:
        await shadow.forget_server(entry)
    # There is no await between check and stop, so no request can start in between.
    if num_open := vllm.num_open(entry.pinned_name):
        raise ModelInUse(
            f"requests for {entry.name!r} are running or waiting in vLLM, {num_open} in all: "
            f"unload it when they have ended"
        )
    await vllm.unload(entry)
