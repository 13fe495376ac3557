"""Other parts of the product on a simulated GPU: timing, the plain scorer, a worker's task."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from pruning.checkpoints.quantized import load_quantized, save_quantized
from pruning.checkpoints.store import CheckpointStore
from pruning.config import WorkerSettings
from pruning.jobs.job import Job, JobStatus
from pruning.jobs.store import JobStore
from pruning.models import timing
from pruning.models.quantize import quantized
from pruning.models.random_models import random_tokens
from pruning.models.streaming import StreamedModel
from pruning.models.timing import measure_streamed_times, measure_times
from pruning.search.dense_model import Resources, load_dense_model
from pruning.search.scoring import PlainScorer
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Quantize, Resident
from pruning.worker.run import prune_job
from pruning.worker.task import JobObserver, execute
from tests.support.simcuda.device import SimulatedCuda
from tests.support.simcuda.models import on_device
from tests.support.tiny import tiny_model


@pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt"])
def test_parts_of_a_decode_step_are_timed_by_replays(
    cuda: SimulatedCuda, model_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    times = measure_times(on_device(tiny_model(model_type)))
    assert times.is_plausible
    assert cuda.num_captures == 1 + 6 + 1
    assert cuda.num_replays == (1 + timing.NUM_REPEATS) * cuda.num_captures
    assert not caplog.records


def test_what_cannot_be_recorded_is_timed_as_it_is(
    cuda: SimulatedCuda, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert measure_times(on_device(tiny_model("mixtral"))).is_plausible
    assert cuda.num_replays == 0
    assert "timed one kernel at a time" in caplog.text


def test_a_streamed_model_is_timed_by_replays(cuda: SimulatedCuda, tiny_models_dir: Path) -> None:
    streamed = StreamedModel(tiny_models_dir / "tiny", device="cuda:1")
    assert measure_streamed_times(streamed).is_plausible
    assert cuda.num_replays == (1 + timing.NUM_REPEATS) * 5
    assert all(parameter.is_meta for parameter in streamed.model.parameters())


@pytest.mark.parametrize("by_divergence", [False, True])
def test_plain_scores_are_those_of_the_cpu(cuda: SimulatedCuda, by_divergence: bool) -> None:
    model = tiny_model("llama")
    windows = random_tokens(model, 5, 12, seed=1)
    keep, candidates = (0, 1, 2, 4, 5), (1, 2, 4)
    kernels = cuda.num_kernels
    cpu, gpu = (
        dict(PlainScorer(each, windows, 2, by_divergence).score_round(keep, candidates))
        for each in (model, on_device(model, "cuda:1"))
    )
    assert cuda.num_kernels > kernels
    for block in candidates:
        assert gpu[block] == pytest.approx(cpu[block], rel=1e-4)


def test_the_weights_of_a_process_leave_its_card_to_actors(
    cuda: SimulatedCuda, tiny_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them has the same card. They come back for what this process computes."""
    held: list[int] = []

    @contextmanager
    def actors(*_args: object, **_kwargs: object) -> Iterator[None]:
        held.append(cuda.allocated_bytes(0) - before)
        yield

    monkeypatch.setattr("pruning.search.dense_model.ClusterScorer", actors)
    monkeypatch.setattr("pruning.search.dense_model.ClusterWalk", actors)
    before, resources = cuda.allocated_bytes(0), Resources("cuda:0", num_actors=2)
    dense = load_dense_model(tiny_models_dir / "tiny", Resident.MODEL, resources)
    weights = cuda.allocated_bytes(0) - before
    windows, keep = random_tokens(dense.model, 2, 12, seed=1), (0, 2, 5)
    expected = [hidden.cpu() for _, hidden in dense.forward(keep).hidden([windows])]
    with dense.scorer(windows):
        pass
    found = [hidden.cpu() for _, hidden in dense.forward(keep).hidden([windows])]
    assert torch.equal(found[0], expected[0])
    assert cuda.allocated_bytes(0) - before >= weights
    open_walk = dense.open_walk()
    assert open_walk is not None
    with open_walk(None, []):  # type: ignore[arg-type, attr-defined]  # of no actors
        assert dense.model.device.type == "cpu"
    assert dense.visited().device.type == "cuda"
    assert dense.times().is_plausible
    assert held == [0, 0]


def test_a_task_prunes_on_its_card_and_again_with_less_at_once_where_memory_is_short(
    cuda: SimulatedCuda, tmp_path: Path, tiny_models_dir: Path, job_store: JobStore
) -> None:
    assert tiny_models_dir == tmp_path / "models"
    settings = WorkerSettings(data_dir=tmp_path, threads=1, device="cuda:1")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(900)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=16, path=str(text))
    job_id = job_store.create(PruneSpec("tiny", 2, calibration=calibration)).id
    batches: list[int] = []

    def run(job: Job, observer: JobObserver) -> str:
        batches.append(job.num_halvings)
        if not job.num_halvings:
            return str(torch.empty(2**40, device="cuda:1"))  # what a card says that is full
        return prune_job(settings, job, observer, observer.earlier, observer.confirm)

    before = cuda.allocated_bytes(0)
    for _ in range(2):
        execute(job_id, job_store, "worker", run)
    job = job_store.get(job_id)
    assert (job.status, batches) == (JobStatus.SUCCEEDED, [0, 1])
    [name] = CheckpointStore(tmp_path / "checkpoints").names()
    assert name == job.checkpoint_name
    assert cuda.peak_bytes(1) > 0
    assert cuda.allocated_bytes(0) == before


@pytest.mark.parametrize("weights", [Quantize.INT8, Quantize.INT4])
def test_a_quantized_export_from_a_card_is_that_of_the_cpu(
    cuda: SimulatedCuda, tmp_path: Path, weights: Quantize
) -> None:
    model = tiny_model("llama")
    for name, each in (("cpu", model), ("cuda:1", on_device(model, "cuda:1"))):
        save_quantized(quantized(each, weights), tmp_path / name, 2**20)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("cpu", "cuda:1")]
    assert files[0] == files[1]
    before = cuda.allocated_bytes(0)
    expected, found = (load_quantized(tmp_path / "cuda:1", name) for name in ("cpu", "cuda:1"))
    assert found.device == torch.device("cuda:1")
    assert cuda.allocated_bytes(0) == before
    token_ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        logits = found(token_ids.to("cuda:1")).logits.cpu()
        torch.testing.assert_close(logits, expected(token_ids).logits, rtol=1e-4, atol=1e-4)
