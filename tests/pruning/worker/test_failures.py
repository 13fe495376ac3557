"""How a run that fails is recorded: under which code, and whether it is tried again."""

from collections.abc import Callable

import pytest
import redis
import torch

from pruning.checkpoints.publish import CheckpointExists, DiskFull
from pruning.checkpoints.verify import CheckpointNotPortable
from pruning.data.corpora import CalibrationError
from pruning.evaluation.quality_gate import QualityGateFailed
from pruning.evaluation.task_errors import TaskUnusable, ZeroShotUnavailable
from pruning.jobs.job import Job, JobError, JobStatus
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.models.architectures import CannotQuantize, UnknownArchitecture, UnsupportedConfig
from pruning.models.memory import StateBudgetTooSmall
from pruning.models.store import ModelNotFound, NotAModel
from pruning.removal import NonFiniteLoss
from pruning.search.ray_actors import ClusterLost
from pruning.search.ray_scoring import ClusterUnavailable
from pruning.sleb import TooManyRemovals
from pruning.spec import InvalidSpec, TargetUnreachable
from pruning.worker.task import JobObserver, execute
from tests.support.job_lives import FIRST, SECOND, SPEC


@pytest.fixture
def job_id(job_store: JobStore) -> str:
    return job_store.create(SPEC).id


def fails_with(error: Exception) -> Callable[[Job, JobObserver], str]:
    def run(_job: Job, _observer: JobObserver) -> str:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            InvalidSpec("calibration.seqlen", "bad"),
            JobError("invalid_spec", "bad", "calibration.seqlen"),
        ),
        (
            TooManyRemovals("num_remove", "bad"),
            JobError("too_many_removals", "bad", "num_remove"),
        ),
        (
            TargetUnreachable("target_speedup", "bad"),
            JobError("target_unreachable", "bad", "target_speedup"),
        ),
        (
            QualityGateFailed("gate.max_probe_drop", "bad"),
            JobError("quality_gate", "bad", "gate.max_probe_drop"),
        ),
        (CheckpointNotPortable("bad"), JobError("checkpoint_not_portable", "bad")),
        (ModelNotFound("bad"), JobError("model_not_found", "bad")),
        (NotAModel("bad"), JobError("not_a_model", "bad")),
        (UnknownArchitecture("bad"), JobError("unknown_architecture", "bad")),
        (UnsupportedConfig("bad"), JobError("unsupported_config", "bad")),
        (CannotQuantize("bad"), JobError("unsupported_config", "bad", "quantize")),
        (ZeroShotUnavailable("bad"), JobError("zero_shot_unavailable", "bad")),
        (TaskUnusable("bad"), JobError("task_unusable", "bad")),
        (CalibrationError("dataset_unavailable", "bad"), JobError("dataset_unavailable", "bad")),
        (NonFiniteLoss("bad"), JobError("non_finite_loss", "bad")),
        (CheckpointExists("bad"), JobError("checkpoint_exists", "bad")),
        (DiskFull(3, 2), JobError("disk_full", str(DiskFull(3, 2)))),
        (StateBudgetTooSmall("bad"), JobError("state_budget_too_small", "bad")),
        (ClusterUnavailable("bad"), JobError("cluster_unavailable", "bad")),
        (ClusterLost("bad"), JobError("cluster_lost", "bad")),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_known_failure_has_its_code(
    job_store: JobStore,
    redis_client: redis.Redis,
    job_id: str,
    error: Exception,
    expected: JobError,
) -> None:
    execute(job_id, job_store, "worker", fails_with(error))
    job = job_store.get(job_id)
    assert (job.status, job.error, job.attempt) == (JobStatus.FAILED, expected, 1)
    PruneQueue(redis_client).recover(job_store)  # what will fail again is not tried again
    assert PruneQueue(redis_client).rq.get_job_ids() == []


def test_a_job_that_is_out_of_memory_is_tried_once_more_with_half_the_batch(
    job_store: JobStore, job_id: str
) -> None:
    tried: list[int] = []

    def run(job: Job, observer: JobObserver) -> str:
        tried.append(job.num_halvings)
        observer.removed((FIRST, SECOND)[len(tried) - 1])
        return str(torch.empty(2**50))

    execute(job_id, job_store, "worker", run)
    waiting, warning = job_store.get(job_id), job_store.events(job_id)[-1]
    assert (waiting.status, waiting.error, waiting.removed_blocks) == (JobStatus.QUEUED, None, (3,))
    assert warning.level == "warn"
    assert "tried to allocate 4 PiB" in warning.message
    execute(job_id, job_store, "worker", run)
    job = job_store.get(job_id)
    assert (job.status, job.attempt, job.num_lost) == (JobStatus.FAILED, 2, 0)
    assert job.removed_blocks == (3, 4)
    assert job.error is not None
    assert job.error.code == "out_of_memory"
    assert tried == [0, 1]


def test_a_defect_is_told_to_the_log_alone(
    job_store: JobStore, job_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    execute(job_id, job_store, "worker", fails_with(RuntimeError("a path and a password")))
    error = job_store.get(job_id).error
    assert error is not None
    assert error.code == "internal_error"
    assert "password" not in error.message
    assert "a path and a password" in caplog.text
