"""Whole pruning runs on a simulated GPU decide and measure what they do on the CPU."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import redis

from pruning.checkpoints.store import Manifest, read_manifest
from pruning.jobs.job import JobStatus
from pruning.jobs.queue import PruneQueue
from pruning.jobs.store import JobStore
from pruning.models.store import ModelStore, load
from pruning.pipeline import prune
from pruning.search.dense_model import Resources
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import Metric, PruneSpec, Quantize, Repair, Resident, Search
from tests.support.job_waits import wait_for_end
from tests.support.quick import slow_but
from tests.support.recorder import Recorder
from tests.support.simcuda.device import SimulatedCuda
from tests.support.waiting import wait_until
from tests.support.worker_fixtures import Workers

RUNS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "staged": {"search": Search.STAGED},
    "streamed": {"resident": Resident.STREAM},
    "streamed, staged": {"resident": Resident.STREAM, "search": Search.STAGED},
    "kl": {"metric": Metric.KL},
    "kl, streamed": {"metric": Metric.KL, "resident": Resident.STREAM},
    "cosine": {"metric": Metric.COSINE},
    "cosine, streamed": {"metric": Metric.COSINE, "resident": Resident.STREAM},
    "ridge": {"repair": Repair.RIDGE},
    "int8": {"quantize": Quantize.INT8},
    "text of the model": {"calibration": CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=16)},
}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(900)))
    return path


def run(models_dir: Path, spec: PruneSpec, device: str, **resources: Any) -> Manifest:
    return prune(
        spec,
        name="tiny@prn-1",
        target=models_dir.parent / device / "tiny@prn-1",
        models=ModelStore(models_dir),
        observer=Recorder(),
        resources=Resources(device=device, **resources),
    )


def numbers(manifest: Manifest) -> list[float]:
    """Every number that was measured."""
    quality = manifest.quality
    measured = [
        each
        for domain in quality.domains
        for each in (domain.dense, *domain.raw, *domain.repaired)
        if each is not None
    ]
    return [*quality.losses, *quality.perplexities, *(each.loss for each in measured)]


@pytest.mark.parametrize(
    "name",
    slow_but(RUNS, "kl", "streamed, staged"),
)
def test_a_run_is_that_of_the_cpu(
    cuda: SimulatedCuda, tiny_models_dir: Path, text: Path, name: str
) -> None:
    calibration = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=16, path=str(text))
    spec = PruneSpec("tiny", 2, **{"calibration": calibration, **RUNS[name]})
    expected = run(tiny_models_dir, spec, "cpu")
    before, before_bytes = cuda.num_kernels, cuda.allocated_bytes(0)
    found = run(tiny_models_dir, spec, "cuda:1")
    assert cuda.num_kernels > before + 1000
    assert cuda.peak_bytes(1) > 0
    assert cuda.allocated_bytes(0) == before_bytes
    assert found.removed_blocks == expected.removed_blocks
    assert numbers(found) == pytest.approx(numbers(expected), rel=1e-4)
    assert found.repair is not None
    assert expected.repair is not None
    assert [each.method for each in found.repair] == [each.method for each in expected.repair]
    loaded = load(tiny_models_dir.parent / "cuda:1" / "tiny@prn-1")
    assert loaded.model.config.num_hidden_layers == 4


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_child_of_a_worker_prunes_on_its_card(
    workers: Workers,
    redis_client: redis.Redis,
    job_store: JobStore,
    tiny_models_dir: Path,
    text: Path,
) -> None:
    assert tiny_models_dir == workers.data_dir / "models"
    calibration = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=16, path=str(text))
    spec = PruneSpec("tiny", 2, calibration=calibration)
    job_id = job_store.create(spec).id
    PruneQueue(redis_client).enqueue(job_id)
    workers.device, workers.module = "cuda:1", "tests.support.simcuda.worker"
    workers.start()
    job = wait_for_end(job_store, job_id, timeout_s=300)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None), workers.log()
    found = read_manifest(workers.data_dir / "checkpoints" / job.checkpoint_name)
    assert len(found.removed_blocks) == 2
    peaks = workers.data_dir / "peaks.json"
    wait_until(peaks.exists, "what the cards held")
    of_first, of_second = json.loads(peaks.read_text())
    assert of_first == 0 < of_second
