"""Which directory vLLM reads for a model, and the precision of what is written for it."""

import asyncio
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from app.models.catalog import Catalog
from app.vllm.servers import Exports
from pruning.checkpoints.store import CheckpointStore
from pruning.config import Verify, WorkerSettings, child_environment
from pruning.models.store import ModelStore
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair
from tests.support.api_fixtures import publish_pruned
from tests.support.tiny_directory import write_tiny_model

SELF = CalibrationSpec(Dataset.SELF, num_samples=2, seqlen=12)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 model, and a repaired checkpoint that was published in bfloat16."""
    data_dir = tmp_path_factory.mktemp("exports")
    write_tiny_model(data_dir / "models" / "tiny")
    spec = PruneSpec(
        "tiny", 2, calibration=SELF, repair=Repair.RIDGE, dtype="float32", save_dtype="bfloat16"
    )
    publish_pruned(data_dir, spec=spec)
    return data_dir


def directory(data_dir: Path, name: str, dtype: str | None = None) -> Path:
    models, checkpoints = data_dir / "models", CheckpointStore(data_dir / "checkpoints")
    catalog = Catalog(ModelStore(models), checkpoints)
    settings = WorkerSettings(data_dir=data_dir, verify=Verify.OFF)
    environment = child_environment(settings)
    exports = Exports(catalog, checkpoints, data_dir / "kept", 2**30, environment, dtype)
    return asyncio.run(exports.directory(catalog.resolve(name)))


def dtypes(folder: Path) -> set[torch.dtype]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 - no mapping


@pytest.mark.slow
def test_a_repair_that_was_published_rounded_is_written_as_the_engine_computes_it(
    data_dir: Path,
) -> None:
    assert dtypes(data_dir / "checkpoints" / "tiny@prn-1") == {torch.bfloat16}
    found = directory(data_dir, "tiny@prn-1")
    assert found.is_relative_to(data_dir / "kept")
    assert dtypes(found) == {torch.float32}


def test_a_published_repair_is_read_as_it_is_by_a_vllm_that_computes_in_its_dtype(
    data_dir: Path,
) -> None:
    found = directory(data_dir, "tiny@prn-1", "bfloat16")
    assert found == data_dir / "checkpoints" / "tiny@prn-1"
