"""Jobs that fail behind their search, and are retried: no candidate is scored again."""

import errno
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.checkpoints.store import CheckpointStore
from pruning.checkpoints.verify import CheckpointNotPortable
from pruning.config import WorkerSettings
from pruning.evaluation.quality_gate import QualityGateFailed
from pruning.healing.train import HealingDiverged
from pruning.jobs.job import Job, JobStatus
from pruning.jobs.store import JobStore
from pruning.models.names import healed_name
from pruning.search.prefixes import Prefixes
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.heal import Heal
from pruning.spec.prune import PruneSpec, Repair
from pruning.worker.run import prune_job
from pruning.worker.task import JobObserver, execute
from tests.support.quick import slow_but
from tests.support.tiny_directory import write_tiny_model

HEAL = Heal(
    num_tokens=2 * 32,
    rank=2,
    batch_tokens=32,
    steps_per_check=2,
    learning_rate=1e-4,
    control=False,
)
# what breaks, with the call that raises and the code of the job's error
FAILURES: dict[str, tuple[str, Exception, str]] = {
    "repair": ("pruning.repair.repair.fit", torch.OutOfMemoryError("no room"), "out_of_memory"),
    "gate": ("pruning.pipeline.assess", QualityGateFailed("gate", "too bad"), "quality_gate"),
    "verify": (
        "pruning.pipeline.verify_portable",
        CheckpointNotPortable("weights differ"),
        "checkpoint_not_portable",
    ),
    "publish": (
        "pruning.pipeline.copy_companions",
        OSError(errno.ENOSPC, "no space left on device"),
        "disk_full",
    ),
    "heal": (
        "pruning.healing.train.Training._step",
        HealingDiverged("loss is nan"),
        "healing_diverged",
    ),
    "evaluate the healed": (
        "pruning.heal_checkpoint.assess_healed",
        QualityGateFailed("gate", "too bad"),
        "quality_gate",
    ),
}


@pytest.fixture
def settings(tmp_path: Path, tiny_models_dir: Path) -> WorkerSettings:
    assert tiny_models_dir == tmp_path / "models"
    return WorkerSettings(data_dir=tmp_path, threads=1)


@pytest.fixture
def spec(settings: WorkerSettings) -> PruneSpec:
    text = settings.data_dir / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(400)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=8, path=str(text))
    return PruneSpec(
        "tiny", 2, calibration=calibration, evaluate=False, repair=Repair.RIDGE, heal=HEAL
    )


def run_of(settings: WorkerSettings) -> Callable[[Job, JobObserver], str]:
    return lambda job, observer: prune_job(
        settings, job, observer, observer.earlier, observer.confirm
    )


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The candidates whose branches are computed from now on."""
    branch, found = Prefixes.branch, list[int]()

    def noted(prefixes: Prefixes, block: int) -> Any:
        found.append(block)
        return branch(prefixes, block)

    monkeypatch.setattr(Prefixes, "branch", noted)
    return found


def run_to_an_end(store: JobStore, settings: WorkerSettings, job_id: str) -> Job:
    """Twice where memory has run out once."""
    while not (job := store.get(job_id)).status.is_final:
        execute(job_id, store, "a worker", run_of(settings))
    return job


@pytest.mark.parametrize("what", slow_but(FAILURES, "heal"))
def test_a_job_that_has_failed_is_retried_without_its_search(
    settings: WorkerSettings,
    job_store: JobStore,
    spec: PruneSpec,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    call, error, code = FAILURES[what]
    job_id = job_store.create(spec).id
    scored = counted(monkeypatch)

    def breaks(*_args: object, **_named: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(call, breaks)
        failed = run_to_an_end(job_store, settings, job_id)
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == code
    assert len(scored) == failed.progress.evaluations_total
    scored.clear()
    job_store.retry(job_id, spec)
    job = run_to_an_end(job_store, settings, job_id)
    assert (job.status, scored) == (JobStatus.SUCCEEDED, []), job.error
    assert (job.removed_blocks, job.losses) == (failed.removed_blocks, failed.losses)
    assert job.pruned_model == healed_name(job.checkpoint_name)
    assert job.progress.ratio == 1


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        pytest.param("repair", {"repair": Repair.NONE}, marks=pytest.mark.slow),
        pytest.param("gate", {"heal": None}, marks=pytest.mark.slow),
        pytest.param("heal", {"repair": Repair.NONE}, marks=pytest.mark.slow),
        ("heal", {"heal": replace(HEAL, clip_norm=0.9)}),
        pytest.param("heal", {"heal": None}, marks=pytest.mark.slow),
        pytest.param("evaluate the healed", {"evaluate": True}, marks=pytest.mark.slow),
    ],
)
def test_other_settings_of_what_follows_do_not_score_again_either(
    settings: WorkerSettings,
    job_store: JobStore,
    spec: PruneSpec,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    changes: dict[str, Any],
) -> None:
    """Also where the job has published a checkpoint with the settings before."""
    call, error, _ = FAILURES[what]
    job_id = job_store.create(spec).id

    def breaks(*_args: object, **_named: object) -> None:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(call, breaks)
        failed = run_to_an_end(job_store, settings, job_id)
    scored = counted(monkeypatch)
    changed = PruneSpec.from_dict({**spec.to_dict(), **_plain(changes)})
    job_store.retry(job_id, changed)
    job = run_to_an_end(job_store, settings, job_id)
    assert (job.status, scored) == (JobStatus.SUCCEEDED, []), job.error
    assert job.removed_blocks == failed.removed_blocks
    checkpoints = CheckpointStore(settings.checkpoints_dir)
    manifest = checkpoints.manifest(job.checkpoint_name)
    assert manifest.repaired_by.value == changed.repair.value
    assert bool(manifest.quality.perplexities) == changed.evaluate
    healed = [name for name in checkpoints.names() if name == healed_name(job.checkpoint_name)]
    assert len(healed) == (changed.heal is not None)
    if changed.heal is not None:
        found = checkpoints.manifest(healed[0]).healing
        assert found is not None
        assert found.settings == changed.heal


def _plain(changes: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.to_dict() if isinstance(value, Heal) else value
        for name, value in changes.items()
    }


@pytest.mark.slow
def test_a_rate_that_ends_in_nan_is_refused_by_the_job_and_can_be_changed(
    settings: WorkerSettings,
    job_store: JobStore,
    spec: PruneSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the training has kept until then is not gone on with."""
    steep = replace(HEAL, num_tokens=8 * 32, learning_rate=1e30, steps_per_check=1, patience=9)
    job_id = job_store.create(replace(spec, heal=steep)).id
    failed = run_to_an_end(job_store, settings, job_id)
    assert failed.error is not None
    assert failed.error.code == "healing_diverged"
    assert "choose a learning rate below" in failed.error.message
    scored = counted(monkeypatch)
    job_store.retry(job_id, spec)
    job = run_to_an_end(job_store, settings, job_id)
    assert (job.status, scored) == (JobStatus.SUCCEEDED, []), job.error
    healing = CheckpointStore(settings.checkpoints_dir).manifest(job.pruned_model or "").healing
    assert healing is not None
    assert all(isfinite(each.loss) for each in healing.run.checks)


@pytest.mark.slow
def test_a_new_job_scores_nothing_that_another_has_scored(
    settings: WorkerSettings,
    job_store: JobStore,
    spec: PruneSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = run_to_an_end(job_store, settings, job_store.create(spec).id)
    scored = counted(monkeypatch)
    other = job_store.create(
        PruneSpec.from_dict({**spec.to_dict(), "repair": "none"}), search_of=first.id
    )
    job = run_to_an_end(job_store, settings, other.id)
    assert (job.status, scored) == (JobStatus.SUCCEEDED, [])
    assert (job.removed_blocks, job.losses) == (first.removed_blocks, first.losses)


@pytest.mark.slow
def test_losses_of_other_weights_are_not_used(
    settings: WorkerSettings,
    job_store: JobStore,
    spec: PruneSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = run_to_an_end(job_store, settings, job_store.create(spec).id)
    write_tiny_model(settings.models_dir / "tiny", seed=5)
    scored = counted(monkeypatch)
    job = run_to_an_end(job_store, settings, job_store.create(spec, search_of=first.id).id)
    assert job.status is JobStatus.SUCCEEDED, job.error
    assert len(scored) == job.progress.evaluations_total
    assert job.losses != first.losses
