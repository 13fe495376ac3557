"""Deletion of dense models that nothing uses."""

import asyncio
from contextlib import suppress

from app.api.deps import GenerationServices
from app.api.unload import ModelInUse, unload
from app.models.aliases import InvalidAliasFile
from app.models.catalog import Catalog
from pruning.checkpoints.staging import remove
from pruning.jobs.job import JobNotFound, JobStatus
from pruning.jobs.store import JobStore


class NotDeletable(ValueError):
    """The name is that of a variant or of an external model."""


async def delete_dense(name: str, generation: GenerationServices, jobs: JobStore) -> None:
    """Unload the model and delete its directory.

    Raises what ``unload`` does, or ``NotDeletable``.
    """
    catalog = generation.registry.catalog
    entry = await asyncio.to_thread(catalog.resolve, name)
    if entry.is_pruned or entry.external is not None:
        where = (
            "external.toml declares it"
            if entry.external is not None
            else "the checkpoint of a job is deleted with it, by DELETE /prune-jobs/{id}"
        )
        raise NotDeletable(f"{name!r} is no dense model of this service: {where}")
    await asyncio.to_thread(_check_unused, name, catalog, jobs)
    await unload(name, generation)
    await asyncio.to_thread(remove, catalog.directory(name))


def _check_unused(name: str, catalog: Catalog, jobs: JobStore) -> None:
    try:
        aliases = catalog.aliases_of(name)
    except InvalidAliasFile as error:
        raise ModelInUse(f"{name!r} may have an alias: {error}") from error
    if aliases:
        raise ModelInUse(
            f"{name!r} or a variant of it has the alias {', '.join(aliases)}: give it another "
            f"target or remove it first"
        )
    for status in (status for status in JobStatus if not status.is_final):
        for job_id in jobs.ids(status):
            with suppress(JobNotFound):  # deleted since it was listed
                if jobs.get(job_id).model == name:
                    raise ModelInUse(f"the job {job_id} prunes {name!r}: wait for it, or cancel it")
