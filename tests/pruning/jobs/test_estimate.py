"""What a job needs, compared with what one really writes; how long it takes, from earlier ones."""

import errno
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pruning.checkpoints.store import CheckpointStore
from pruning.jobs.estimate import Footprint, duration, footprint, wait_s
from pruning.jobs.job import Job, JobStatus, Progress
from pruning.models.architectures import ARCHITECTURES
from pruning.models.blocks import block_list
from pruning.models.safetensors_headers import WeightSizes, weight_sizes
from pruning.models.store import ModelStore, NotAModel
from pruning.repair.fitted import FittedLayers
from pruning.spec.calibration import CalibrationSpec, Dataset, Sampling
from pruning.spec.prune import Metric, PruneSpec, Repair, Resident, Search
from tests.support.api_fixtures import publish_pruned
from tests.support.tiny import tiny_model
from tests.support.tiny_checkpoints import write_checkpoint

WINDOWS = CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=16)
SPEC = PruneSpec("tiny", num_remove=2, calibration=WINDOWS)


def needs(models_dir: Path, spec: PruneSpec) -> Footprint:
    info = ModelStore(models_dir).inspect("tiny")
    refit = ARCHITECTURES[info.model_type].writes.fitted
    return footprint(spec, info, weight_sizes(info.path, refit))


# ---- bytes


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_blocks_are_told_from_the_rest_in_every_family(tmp_path: Path, family: str) -> None:
    write_checkpoint(tmp_path, family)
    tensors = load_file(tmp_path / "model.safetensors")
    sizes, model = weight_sizes(tmp_path), tiny_model(family)
    num_blocks = model.config.num_hidden_layers
    assert sizes.num_parameters(num_blocks) == sum(tensor.numel() for tensor in tensors.values())
    assert 0 < sizes.num_in_blocks < sizes.num_parameters(num_blocks)
    blocks = re.compile(rf".*\.{ARCHITECTURES[family].blocks.rpartition('.')[2]}\.\d+\.")
    in_blocks = (each.numel() for name, each in tensors.items() if blocks.match(name))
    assert sizes.num_in_blocks == sum(in_blocks)


def test_shards_are_added_up(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "whole", "llama")
    write_checkpoint(tmp_path / "shards", "llama", layout="shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert weight_sizes(tmp_path / "shards") == weight_sizes(tmp_path / "whole")


@pytest.mark.parametrize("content", [b"", b"junk", b"\xff" * 16, b"\2" + b"\0" * 7 + b"[]"])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(NotAModel, match="not a safetensors file"):
        weight_sizes(tmp_path)


def test_a_file_that_may_not_be_read_is_not_called_a_broken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    # nothing is refused to root
    monkeypatch.setattr("pruning.models.safetensors_headers.open_stored", refuse)
    with pytest.raises(NotAModel, match="cannot read"):
        weight_sizes(tmp_path)


def test_the_checkpoint_is_as_large_as_one_that_is_published(tiny_models_dir: Path) -> None:
    publish_pruned(tiny_models_dir.parent, num_remove=2)
    path = CheckpointStore(tiny_models_dir.parent / "checkpoints").path("tiny@prn-1")
    weights = load_file(path / "model.safetensors")
    needed = needs(tiny_models_dir, SPEC)
    assert needed.checkpoint_bytes == sum(tensor.nbytes for tensor in weights.values())
    assert needed.least_checkpoint_bytes == needed.checkpoint_bytes < needed.weight_bytes


def test_repairs_are_not_larger_than_estimated(tiny_models_dir: Path) -> None:
    """Every depth has a file, with the matrices of three blocks for each gap, or none if that is
    better."""
    asked = replace(SPEC, num_remove=4, repair=Repair.RIDGE)
    manifest = publish_pruned(tiny_models_dir.parent, spec=asked)
    assert manifest.repair is not None
    needed = needs(tiny_models_dir, asked)
    assert needed.repair_bytes == (3 + 4 + 3 + 2) * 32 * (32 + 48) * 4
    assert sum(depth.num_bytes for depth in manifest.repair) <= needed.repair_bytes
    for repair in (Repair.SCALE, Repair.NONE):
        assert needs(tiny_models_dir, replace(asked, repair=repair)).repair_bytes == 0


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_the_matrices_of_a_repair_are_found_in_every_family(tmp_path: Path, family: str) -> None:
    write_checkpoint(tmp_path, family)
    model, layers = tiny_model(family), ARCHITECTURES[family].writes.fitted
    most = max(FittedLayers(block, model.config).num_parameters for block in block_list(model))
    assert weight_sizes(tmp_path, layers).num_refit == most


def test_another_dtype_takes_another_number_of_bytes(tiny_models_dir: Path) -> None:
    full, half = (needs(tiny_models_dir, replace(SPEC, dtype=d)) for d in ("auto", "bfloat16"))
    assert full.weight_bytes == 2 * half.weight_bytes
    assert full.checkpoint_bytes == half.checkpoint_bytes  # published in the model's own type
    saved = needs(tiny_models_dir, replace(SPEC, dtype="bfloat16", save_dtype=None))
    assert full.checkpoint_bytes == 2 * saved.checkpoint_bytes
    assert full.state_bytes == 2 * (half.state_bytes or 0)


def test_hidden_states_of_all_windows_and_of_one(tiny_models_dir: Path) -> None:
    state = 16 * 32 * 4  # tokens, hidden size, bytes
    needed = needs(tiny_models_dir, SPEC)
    assert (needed.state_bytes, needed.least_state_bytes) == (4 * state * 13, state * 7)
    text = replace(WINDOWS, dataset=Dataset.FILE, path="x", sampling=Sampling.ROWS)
    streamed = replace(SPEC, resident=Resident.STREAM, calibration=text)
    needed = needs(tiny_models_dir, streamed)
    assert (needed.state_bytes, needed.least_state_bytes) == (None, state * 13)


def test_an_open_target_removes_one_block_or_all_that_are_free(tiny_models_dir: Path) -> None:
    spec = PruneSpec("tiny", max_perplexity_ratio=1.5)
    needed = needs(tiny_models_dir, spec)
    one, all_free = (needs(tiny_models_dir, PruneSpec("tiny", num_remove=n)) for n in (1, 4))
    assert needed.checkpoint_bytes == one.checkpoint_bytes
    assert needed.least_checkpoint_bytes == all_free.checkpoint_bytes
    assert [each.is_depth_open for each in (spec, SPEC)] == [True, False]


def test_sizes_are_exact_for_whole_blocks() -> None:
    assert WeightSizes(num_in_blocks=60, num_elsewhere=5).num_parameters(6, 2) == 45


# ---- seconds


def job(number: int, *, ran_s: float = 10.0, evaluations: int = 5, **change: Any) -> Job:
    given = Job(
        id=f"prn-{number:021x}",
        model="tiny",
        spec=SPEC,
        status=JobStatus.SUCCEEDED,
        created_at=0.0,
        progress=Progress(evaluations, evaluations),
        attempt=1,
        started_at=100.0,
        finished_at=100.0 + ran_s,
    )
    return replace(given, **change)


def test_a_job_takes_as_long_as_earlier_ones_of_its_kind() -> None:
    jobs = [job(1, ran_s=10), job(2, ran_s=20), job(3, ran_s=90)]
    judged = duration(replace(SPEC, num_remove=3), 7, jobs)
    assert judged.seconds == 7 * 4.0
    assert judged.jobs == tuple(each.id for each in jobs)


@pytest.mark.parametrize(
    "other",
    [
        job(1, spec=replace(SPEC, model="other")),
        job(1, spec=replace(SPEC, calibration=replace(WINDOWS, seqlen=32))),
        job(1, spec=replace(SPEC, search=Search.STAGED)),
        job(1, spec=replace(SPEC, metric=Metric.COSINE)),
        job(1, spec=replace(SPEC, repair=Repair.NONE)),
        job(1, attempt=2),
        job(1, status=JobStatus.FAILED),
        job(1, progress=Progress()),
    ],
)
def test_other_jobs_tell_nothing(other: Job) -> None:
    judged = duration(SPEC, 7, [other])
    assert (judged.seconds, judged.jobs) == (None, ())


def running(number: int, **change: Any) -> Job:
    return job(number, status=JobStatus.RUNNING, finished_at=None, **change)


def test_a_place_is_free_when_the_first_running_job_ends() -> None:
    jobs = [running(1, estimated_finish=400.0), running(2, estimated_finish=250.0)]
    assert wait_s(jobs, [], now=200.0) == 50.0
    assert wait_s([running(1)], [job(2, ran_s=130.0)], now=200.0) == 30.0


def test_a_wait_is_neither_nothing_nor_endless() -> None:
    assert wait_s([running(1, estimated_finish=201.0)], [], now=200.0) == 5.0
    assert wait_s([running(1, estimated_finish=1e9)], [], now=200.0) == 3600.0
    assert wait_s([running(1)], [], now=200.0) == wait_s([], [job(2)], now=200.0) == 60.0
