"""Out of memory: the message, and the same result with half of the batch."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from pruning.checkpoints.store import Manifest
from pruning.jobs.store import JobStore
from pruning.models import memory
from pruning.models.memory import BATCH_TOKENS, is_out_of_memory, shortage
from pruning.models.store import ModelStore
from pruning.pipeline import prune
from pruning.search.dense_model import Resources
from pruning.search.prefixes import Prefixes
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.evaluation import Evaluation
from pruning.spec.prune import PruneSpec, Resident
from pruning.worker.run import describe
from pruning.worker.task import run_job
from tests.support.recorder import Recorder

ON_GPU = (
    "CUDA out of memory. Tried to allocate 1.95 GiB. GPU 0 has a total capacity of 14.57 GiB of "
    "which {free} is free. Of the allocated memory 734.07 MiB is allocated by PyTorch."
)

STAT = "anon 400\ninactive_file 200\nactive_file 100\n"


def raised_by(allocate: object) -> Exception:
    assert callable(allocate)
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate()
    return caught.value


def test_main_memory_that_torch_cannot_have() -> None:
    error = raised_by(lambda: torch.empty(2**50, dtype=torch.uint8))
    assert is_out_of_memory(error)
    said = shortage(error)
    assert re.fullmatch(
        r"out of memory in main memory: tried to allocate 1 PiB, but only [\d.]+ [KMG]iB were free",
        said,
    )


def test_main_memory_that_numpy_cannot_have() -> None:
    error = raised_by(lambda: np.empty(2**60, dtype=np.uint8))
    assert is_out_of_memory(error)
    assert "tried to allocate 1 EiB, but only " in shortage(error)


def test_an_error_that_names_no_size() -> None:
    said = shortage(MemoryError())
    assert "tried to allocate more than available, but only " in said


@pytest.mark.parametrize(
    ("free", "told"), [("1.58 GiB", "1.58 GiB"), ("8.94 MiB", "8.94 MiB"), ("0 bytes", "0 bytes")]
)
def test_memory_of_a_gpu(free: str, told: str) -> None:
    error = torch.OutOfMemoryError(ON_GPU.format(free=free))
    assert is_out_of_memory(error)
    assert shortage(error) == (
        f"out of memory on the GPU: tried to allocate 1.95 GiB, but only {told} were free"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="would tell what is free there")
def test_memory_of_a_gpu_that_is_out_of_sight() -> None:
    said = shortage(RuntimeError("CUDA error: out of memory"))
    assert said == "out of memory on the GPU: tried to allocate more than available"


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("out of memory")])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not is_out_of_memory(error)
    assert describe(error).code == "internal_error"


def test_a_job_that_fails_for_it_says_what_to_do() -> None:
    failure = describe(torch.OutOfMemoryError(ON_GPU.format(free="1.58 GiB")))
    assert failure.code == "out_of_memory"
    assert "1.95 GiB" in failure.message
    assert "half the batch" in failure.message
    assert "shorter windows" in failure.message


# ---- half the batch


def test_a_worker_halves_the_batch_of_a_job_that_was_short_of_memory(
    job_store: JobStore, tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("SLEB_REDIS_URL", redis_url)
    batches: list[int] = []

    def overflow(*_given: object, resources: Resources, **_settings: object) -> None:
        batches.append(resources.batch_tokens)
        raise MemoryError

    monkeypatch.setattr("pruning.worker.run.prune", overflow)
    job_id = job_store.create(PruneSpec("tiny", num_remove=1)).id
    for _ in range(2):
        run_job(job_id)
    assert batches == [BATCH_TOKENS, BATCH_TOKENS // 2]


@pytest.mark.slow
@pytest.mark.parametrize("resident", Resident)
def test_half_the_batch_changes_no_removal(
    tiny_models_dir: Path, tmp_path: Path, resident: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    class Noted(Prefixes):
        def __init__(
            self, model: PreTrainedModel, token_ids: torch.Tensor, num_states: int, **options: bool
        ) -> None:
            sizes.append(token_ids.numel())
            super().__init__(model, token_ids, num_states, **options)

    monkeypatch.setattr("pruning.search.scoring.Prefixes", Noted)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 40)
    calibration = CalibrationSpec(Dataset.FILE, num_samples=8, seqlen=8, path=str(text))
    spec = PruneSpec(
        "tiny", 3, calibration=calibration, evaluation=Evaluation(num_samples=5), resident=resident
    )

    def found(batch_tokens: int) -> Manifest:
        sizes.clear()
        manifest = prune(
            spec,
            name="tiny@prn-1",
            target=tmp_path / str(batch_tokens),
            models=ModelStore(tiny_models_dir),
            observer=Recorder(),
            resources=Resources("cpu", batch_tokens=batch_tokens),
        )
        assert set(sizes) == {batch_tokens}
        return manifest

    whole, half = found(32), found(16)
    assert half.removed_blocks == whole.removed_blocks
    assert half.quality.losses == pytest.approx(whole.quality.losses, rel=1e-6)
    assert half.quality.perplexities == pytest.approx(whole.quality.perplexities, rel=1e-6)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": STAT}, 500),
        ({"memory.max": "1000\n", "memory.current": "1300\n", "memory.stat": STAT}, 0),
        ({"memory.max": "max\n"}, sys.maxsize),
        ({}, sys.maxsize),
    ],
    ids=["limit", "beyond the limit", "no limit", "no group"],
)
def test_memory_ends_at_the_limit_of_a_container(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert memory._left_in_group(tmp_path) == expected
