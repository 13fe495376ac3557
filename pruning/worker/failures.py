"""Error codes of failed jobs, by the exception of the pruning run."""

from collections.abc import Mapping

from pruning.checkpoints.publish import CheckpointExists, DiskFull
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointNotFound
from pruning.checkpoints.verify import CheckpointNotPortable
from pruning.data.corpora import CalibrationError
from pruning.evaluation.quality_gate import QualityGateFailed
from pruning.evaluation.zero_shot import TaskUnusable, ZeroShotUnavailable
from pruning.extras import ExtraMissing
from pruning.healing.adapter import NothingToAdapt
from pruning.healing.lock import HealingInProgress
from pruning.healing.record import NotHealable
from pruning.healing.state import TrainingNotSaved
from pruning.healing.train import HealingDiverged
from pruning.jobs.job import JobError
from pruning.models.architectures import UnknownArchitecture, UnsupportedConfig
from pruning.models.memory import StateBudgetTooSmall, is_out_of_memory, shortage
from pruning.models.store import ModelNotFound, NotAModel
from pruning.removal import NonFiniteLoss
from pruning.repair.states import SpillFailed
from pruning.search.ray_actors import ClusterLost
from pruning.search.ray_scoring import ClusterUnavailable
from pruning.sleb import TooManyRemovals
from pruning.spec import InvalidSpec, TargetUnreachable

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
    "with half the batch as well: use shorter windows, a smaller dtype, resident=stream, or a "
    "device with more memory"
)


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
