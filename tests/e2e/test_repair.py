"""Repair on the demo model: the fit of one domain, and what variants share."""

from dataclasses import replace
from pathlib import Path

import pytest

from app.models.catalog import Catalog
from app.models.registry import ModelRegistry
from pruning.checkpoints.store import CheckpointStore
from pruning.data.calibration import RepairWindows, repair_windows
from pruning.models.blocks import num_blocks
from pruning.models.demo_model import NAME
from pruning.models.store import ModelStore
from pruning.removal import kept
from pruning.repair.order import choose, gains
from pruning.repair.record import Method
from pruning.repair.repair import RepairedDepth, repair_depths
from pruning.search.dense_model import DenseModel, Resources, load_dense_model
from pruning.spec.calibration import CalibrationSpec, Dataset, default_calibration
from pruning.spec.prune import Metric, PruneSpec, Repair, Resident
from tests.support.pruning_runs import prune_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
REMOVED = (14, 26, 13, 12, 25, 3)


@pytest.fixture(scope="module")
def dense(demo_model_dir: Path) -> DenseModel:
    return load_dense_model(demo_model_dir, Resident.MODEL, Resources(), dtype="float32")


def prose_repair(dense: DenseModel, *, judged_by: set[str]) -> RepairedDepth:
    """A repair that is fitted on prose alone, with penalties chosen on windows of these domains."""
    prose = CalibrationSpec(Dataset.PROSE, num_samples=4, seqlen=256)
    found = repair_windows(prose, dense.model, dense.tokenizer)
    assert found.train.keys() == {"prose"}
    assert found.selection.keys() == {"prose", "code"}
    text = RepairWindows(
        {domain: replace(windows, kinds=()) for domain, windows in found.train.items()},
        {domain: found.selection[domain] for domain in found.selection if domain in judged_by},
    )
    keep = kept(num_blocks(dense.model), REMOVED)
    [depth] = repair_depths(
        dense.visited(), [keep], text, batch_tokens=dense.resources.batch_tokens
    )
    return depth


def test_a_fit_on_prose_alone_harms_no_code(dense: DenseModel) -> None:
    """A job that is calibrated on prose is judged on packaged code too."""
    alone = prose_repair(dense, judged_by={"prose"})
    assert choose(alone).method is Method.RIDGE
    assert gains(alone)["prose"].mean > 0.1
    both = prose_repair(dense, judged_by={"prose", "code"})
    is_better = all(gain.mean > 0 for gain in gains(both).values())
    assert choose(both).method is (Method.RIDGE if is_better else Method.NONE)


def test_ten_repaired_depths_take_at_most_half_of_the_dense_weights(demo_data_dir: Path) -> None:
    """And their raw forms nothing."""
    models_dir = demo_data_dir / "models"
    spec = PruneSpec(
        NAME,
        10,
        metric=Metric.COSINE,
        calibration=default_calibration(num_samples=2, seqlen=64),
        repair=Repair.RIDGE,
        evaluate=False,
    )
    _, path = prune_tiny(models_dir, spec, f"{NAME}@prn-1")
    models, checkpoints = ModelStore(models_dir), CheckpointStore(path.parent)
    catalog = Catalog(models, checkpoints)
    registry = ModelRegistry(catalog, models, checkpoints, device="cpu")
    names = [NAME, *(f"{NAME}@-{k}{raw}" for k in range(1, 11) for raw in ("", "+raw"))]
    tensors = {
        parameter.data_ptr(): parameter.nbytes
        for name in names
        for parameter in registry.get(name).variant.model.parameters()
    }
    weight_bytes = registry.weight_bytes()
    assert sum(tensors.values()) == sum(weight_bytes.values()) <= 1.5 * weight_bytes[NAME]
