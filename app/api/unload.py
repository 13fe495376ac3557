"""Unloading models that no request uses, and deletion of dense ones that nothing uses."""

import asyncio
from contextlib import suppress

from app.api.deps import GenerationServices
from app.compare.shadow import Shadow
from app.models.aliases import InvalidAliasFile
from app.models.catalog import Catalog, UnknownModel
from app.models.entry import ModelEntry
from app.models.weights import WeightsLoading
from app.vllm.servers import VllmServers
from pruning.checkpoints.staging import remove
from pruning.jobs.job import JobNotFound, JobStatus
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.store import JobStore
from pruning.models.memory import empty_cache


class ModelInUse(RuntimeError):
    """Requests use the model."""


class NotDeletable(ValueError):
    """The name is that of a variant or of an external model."""


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
            f"{name!r} or a variant of it has running or waiting requests ({num_open}): "
            "unload it when they have finished"
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
            f"{entry.name!r} has running or waiting requests in vLLM ({num_open}): unload "
            "it when they have finished"
        )
    await vllm.unload(entry)


async def delete_dense(name: str, generation: GenerationServices, jobs: JobStore) -> None:
    """Unload the model and delete its directory.

    Raises what ``unload`` does, or ``NotDeletable``.
    """
    catalog = generation.registry.catalog
    entry = await asyncio.to_thread(catalog.resolve, name)
    if entry.is_pruned or entry.external is not None:
        where = (
            "it is declared in external.toml"
            if entry.external is not None
            else "delete its job with DELETE /prune-jobs/{id}"
        )
        raise NotDeletable(f"{name!r} is not a dense model of this service: {where}")
    await asyncio.to_thread(_check_unused, name, catalog, jobs)
    await unload(name, generation)
    await asyncio.to_thread(remove, catalog.directory(name))


def _check_unused(name: str, catalog: Catalog, jobs: JobStore) -> None:
    try:
        aliases = catalog.aliases_of(name)
    except InvalidAliasFile as error:
        raise ModelInUse(f"cannot check whether {name!r} has an alias: {error}") from error
    if aliases:
        raise ModelInUse(
            f"{name!r} or a variant of it has the alias {', '.join(aliases)}: change or "
            "remove the alias first"
        )
    for status in (status for status in JobStatus if not status.is_final):
        for job_id in jobs.ids(status):
            with suppress(JobNotFound):  # deleted since it was listed
                if jobs.get(job_id).model == name:
                    raise ModelInUse(
                        f"job {job_id} is pruning {name!r}: wait until it ends, or cancel it"
                    )
