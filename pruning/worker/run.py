"""The part of a task that needs torch: pruning the model of a job, and codes of what that raises.

Importing torch takes seconds, so ``task.py`` imports this module only once there is a job to run.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from pruning.checkpoints.publish import CheckpointExists, DiskFull
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointNotFound
from pruning.checkpoints.verify import CheckpointNotPortable
from pruning.config import WorkerSettings
from pruning.data.corpora import CalibrationError
from pruning.evaluation.quality_gate import QualityGateFailed
from pruning.evaluation.task_errors import TaskUnusable, ZeroShotUnavailable
from pruning.extras import ExtraMissing
from pruning.healing.adapter import NothingToAdapt
from pruning.healing.lock import HealingInProgress
from pruning.healing.places import healed_beside
from pruning.healing.record import NotHealable
from pruning.healing.state import TrainingNotSaved
from pruning.healing.train import HealingDiverged
from pruning.jobs.job import Job, JobError, Phase
from pruning.jobs.queue import DELIVERIES
from pruning.models.architectures import UnknownArchitecture, UnsupportedConfig
from pruning.models.memory import BATCH_TOKENS, StateBudgetTooSmall, is_out_of_memory, shortage
from pruning.models.store import ModelNotFound, ModelStore, NotAModel, set_up_torch
from pruning.pipeline import heal_again, prune
from pruning.removal import NonFiniteLoss
from pruning.repair.states import SpillFailed
from pruning.search.dense_model import Resources
from pruning.search.observed import Observer
from pruning.search.ray_actors import ClusterLost
from pruning.search.ray_scoring import ClusterUnavailable
from pruning.search.state import SearchState
from pruning.sleb import TooManyRemovals
from pruning.spec import InvalidSpec, TargetUnreachable
from pruning.storage.checkpoints import checkpoints_of

CODES: Mapping[type[Exception], str] = {
    InvalidSpec: "invalid_spec",
    TooManyRemovals: "too_many_removals",
    TargetUnreachable: "target_unreachable",
    ModelNotFound: "model_not_found",
    NotAModel: "not_a_model",
    UnknownArchitecture: "unknown_architecture",
    UnsupportedConfig: "unsupported_config",
    NonFiniteLoss: "non_finite_loss",
    CheckpointExists: "checkpoint_exists",
    CheckpointNotFound: "checkpoint_not_found",
    CheckpointCorrupt: "checkpoint_corrupt",
    DiskFull: "disk_full",
    SpillFailed: "disk_full",
    TrainingNotSaved: "disk_full",
    QualityGateFailed: "quality_gate",
    CheckpointNotPortable: "checkpoint_not_portable",
    ExtraMissing: "extra_missing",
    ZeroShotUnavailable: "zero_shot_unavailable",
    TaskUnusable: "task_unusable",
    StateBudgetTooSmall: "state_budget_too_small",
    ClusterUnavailable: "cluster_unavailable",
    ClusterLost: "cluster_lost",
    HealingDiverged: "healing_diverged",
    HealingInProgress: "healing_in_progress",
    NotHealable: "not_healable",
    NothingToAdapt: "not_healable",
}
_HINT = (
    "even with half the batch size: use shorter windows, a smaller dtype, "
    "resident=stream, or a device with more memory"
)


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
        resources = replace(resources, no_repair=f"{job.num_lost} workers died while running it")
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


def exhausted_memory(error: Exception) -> str | None:
    """Which memory has run out, and by how much, if one has."""
    return shortage(error) if is_out_of_memory(error) else None


def describe(error: Exception) -> JobError:
    """Describe ``error`` for clients. The message of an unexpected error stays in the log."""
    if isinstance(error, CalibrationError):
        return JobError(error.code, str(error), error.param)
    if is_out_of_memory(error):
        return JobError("out_of_memory", f"{shortage(error)}, {_HINT}")
    for kind, code in CODES.items():
        if isinstance(error, kind):
            return JobError(code, str(error) or code, getattr(error, "param", None))
    return JobError("internal_error", "internal error of the worker: see its log")
