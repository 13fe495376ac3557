"""The part of a task that needs torch: pruning the model of a job, and describing its error.

Importing torch takes seconds, so ``task.py`` imports this module only once there is a job to run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from pruning.checkpoints.same_search import is_healed_otherwise
from pruning.checkpoints.store import Manifest
from pruning.config import Verify, WorkerSettings
from pruning.heal_checkpoint import heal_checkpoint
from pruning.healing.places import HealedPlaces, healed_beside
from pruning.jobs.job import Job, JobError, Phase
from pruning.jobs.queue import DELIVERIES
from pruning.models.memory import BATCH_TOKENS, is_out_of_memory, shortage
from pruning.models.store import ModelStore, set_up_torch
from pruning.pipeline import prune
from pruning.search.dense_model import Resources
from pruning.search.observed import Observer
from pruning.search.state import SearchState
from pruning.spec.heal import Heal
from pruning.storage.checkpoints import checkpoints_of
from pruning.worker.failures import describe


def prune_job(
    settings: WorkerSettings,
    job: Job,
    observer: Observer,
    earlier: SearchState,
    confirm: Callable[[], object],
) -> str:
    """Prune the model of the job, or heal its checkpoint; return the name of what is published.
    ``earlier`` and ``confirm`` are those of ``pipeline.prune``.
    """
    set_up_torch(settings.threads)
    name, models = job.checkpoint_name, ModelStore(settings.models_dir)
    checkpoints = checkpoints_of(settings)
    resources = Resources.of(settings, BATCH_TOKENS >> job.num_halvings)
    if job.lost_in is Phase.REPAIR and job.num_lost >= DELIVERIES - 1:
        resources = replace(resources, no_repair=f"it has ended {job.num_lost} workers")
    if job.source is not None and job.spec.heal is not None:
        source = checkpoints.directory(job.source)  # raises CheckpointNotFound
        places = replace(healed_beside(checkpoints.path(name)), source=source)
        given = (places, models, observer, resources, confirm, settings.verify)
        return _healed(job.spec.heal, job.owner, *given).name
    return prune(
        job.spec,
        name=name,
        target=checkpoints.path(name),
        models=models,
        observer=observer,
        resources=resources,
        earlier=earlier,
        confirm=confirm,
        verify=settings.verify,
        tenant=job.owner,
    ).name


def _healed(
    heal: Heal,
    tenant: str | None,
    places: HealedPlaces,
    models: ModelStore,
    observer: Observer,
    resources: Resources,
    confirm: Callable[[], object],
    verify: Verify,
) -> Manifest:
    return heal_checkpoint(
        heal,
        places,
        name=places.target.name,
        models=models,
        observer=observer,
        resources=resources,
        confirm=confirm,
        how=verify,
        overwrite=is_healed_otherwise(places.target, places.source.name, heal),
        tenant=tenant,
    )


@dataclass(frozen=True)
class Failure:
    """Why a job failed. ``exhausted_memory`` names the memory that it ran out of, if it did."""

    error: JobError
    exhausted_memory: str | None


def failure_of(error: Exception) -> Failure:
    """Describe an exception of ``prune_job``."""
    return Failure(describe(error), shortage(error) if is_out_of_memory(error) else None)
