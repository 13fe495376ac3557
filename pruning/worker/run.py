"""The part of a task that needs torch: pruning the model of a job.

Importing torch takes seconds, so ``task.py`` imports this module only once there is a job to run.
"""

from collections.abc import Callable
from dataclasses import replace

from pruning.config import WorkerSettings
from pruning.healing.places import healed_beside
from pruning.jobs.job import Job, Phase
from pruning.jobs.queue import DELIVERIES
from pruning.models.memory import BATCH_TOKENS
from pruning.models.store import ModelStore, set_up_torch
from pruning.pipeline import heal_again, prune
from pruning.search.dense_model import Resources
from pruning.search.observed import Observer
from pruning.search.state import SearchState
from pruning.storage.checkpoints import checkpoints_of


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
        how = (models, observer, resources, confirm, settings.verify)
        return heal_again(job.spec.heal, places, *how, tenant=job.owner).name
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
