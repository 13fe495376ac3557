"""What a healing needs, compared with one that was made; its time, from earlier ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pruning.healing.adapter import adapted
from pruning.healing.places import ADAPTER_TENSORS
from pruning.jobs.estimate import HealEstimate, heal_estimate
from pruning.jobs.job import HealProgress, Job, JobStatus
from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import view
from pruning.models.safetensors_headers import weight_sizes
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.heal import Depths, Heal
from pruning.spec.prune import PruneSpec
from tests.support.healing import Healed
from tests.support.tiny import tiny_model
from tests.support.tiny_checkpoints import write_checkpoint

HEAL = Heal(num_tokens=1000, rank=2, batch_tokens=64, control=False, depths=Depths.DEEPEST)
WINDOWS = CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=48)
SPEC = PruneSpec("tiny", num_remove=2, calibration=WINDOWS, heal=HEAL)
CONTROLLED = replace(SPEC, heal=replace(HEAL, control=True))
DONE = HealProgress("healed", 500, 1.0, 2.0, 50.0, 10.0, 2.5)


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_adapters_of_every_family_are_as_large_as_estimated(tmp_path: Path, family: str) -> None:
    write_checkpoint(tmp_path, family)
    sizes, model = weight_sizes(tmp_path), tiny_model(family)
    found = heal_estimate(SPEC, 6, sizes, [])
    assert found is not None
    pruned = adapted(view(model, (0, 1, 3, 5)), HEAL).num_bytes
    has_experts = any("experts" in name for name, _ in model.named_parameters())
    is_mixed = not ARCHITECTURES[family].is_served  # blocks of different sizes count as equal
    least, most = (0.95 if is_mixed else 1), (1.5 if is_mixed else 1.25 if has_experts else 1)
    assert least * pruned <= found.adapter_bytes <= pruned * most
    assert found.training_bytes == 4 * found.adapter_bytes
    both = heal_estimate(CONTROLLED, 6, sizes, [])
    assert both is not None
    whole = adapted(view(model, range(6)), HEAL).num_bytes
    assert least * whole <= both.adapter_bytes - found.adapter_bytes <= whole * most
    assert both.training_bytes == 4 * both.adapter_bytes - 3 * found.adapter_bytes


@pytest.mark.slow
def test_a_healing_takes_the_tokens_and_the_disk_that_it_was_estimated_to(healed: Healed) -> None:
    spec = PruneSpec.from_dict(healed.manifest.spec)
    sizes = weight_sizes(healed.data_dir / "models" / "tiny")
    found = heal_estimate(spec, healed.manifest.num_blocks, sizes, [])
    assert found is not None
    assert healed.manifest.healing is not None
    assert found.num_tokens == healed.manifest.healing.run.num_tokens
    files = [healed.target / folder / ADAPTER_TENSORS for folder in ("adapter", "control")]
    written = sum(file.stat().st_size for file in files)
    assert 0.5 * written < found.adapter_bytes <= written  # beside names and shapes


def test_what_heals_nothing_has_no_estimate(tmp_path: Path) -> None:
    assert of(tmp_path, replace(SPEC, heal=None)) is None


def test_steps_and_windows_are_whole(tmp_path: Path) -> None:
    found = of(tmp_path, SPEC)
    assert found is not None
    assert found.num_tokens == 21 * 48  # a step has room for one window
    assert found.control_tokens == 0


def of(path: Path, spec: PruneSpec, *jobs: Job) -> HealEstimate | None:
    write_checkpoint(path, "llama")
    return heal_estimate(spec, 6, weight_sizes(path), jobs)


def job(number: int, **change: Any) -> Job:
    job_id = f"prn-{number:021x}"
    given = Job(job_id, "tiny", SPEC, JobStatus.SUCCEEDED, 0.0, heal_progress=DONE)
    return replace(given, **change)


def test_a_healing_takes_as_long_as_earlier_ones_of_its_kind(tmp_path: Path) -> None:
    slow = replace(DONE, seconds=40.0)
    found = of(tmp_path, SPEC, job(1), job(2, heal_progress=slow), job(3, attempt=2))
    assert found is not None
    assert found.seconds == pytest.approx(21 * 48 * 10 / 500)
    assert len(found.jobs) == 3
    alone = of(tmp_path, CONTROLLED, job(1, spec=CONTROLLED))
    assert alone is not None
    assert alone.seconds == pytest.approx(21 * 48 * 10 / 500)
    of_control = replace(DONE, training="control")
    both = of(tmp_path, CONTROLLED, job(1, spec=CONTROLLED, heal_progress=of_control))
    assert both is not None
    assert both.seconds == pytest.approx(2 * 21 * 48 * 10 / 500)


@pytest.mark.parametrize(
    "other",
    [
        job(1, spec=replace(SPEC, model="other")),
        job(1, spec=replace(SPEC, num_remove=3)),
        job(1, spec=replace(SPEC, heal=None)),
        job(1, spec=CONTROLLED),
        job(1, spec=replace(SPEC, heal=replace(HEAL, batch_tokens=512))),
        job(1, spec=replace(SPEC, calibration=replace(WINDOWS, seqlen=24))),
        job(1, status=JobStatus.FAILED),
        job(1, heal_progress=None),
    ],
)
def test_other_jobs_tell_nothing(other: Job, tmp_path: Path) -> None:
    found = of(tmp_path, SPEC, other)
    assert found is not None
    assert (found.seconds, found.jobs) == (None, ())
