"""A pruned and a healed checkpoint of a tiny model, made once for all tests that read them."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from pruning.checkpoints.store import Manifest
from pruning.heal_checkpoint import heal_checkpoint
from pruning.healing.places import HealedPlaces
from pruning.models.names import healed_name
from pruning.models.store import ModelStore
from pruning.search.dense_model import Resources
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.evaluation import Evaluation
from pruning.spec.heal import Depths, Heal
from pruning.spec.prune import PruneSpec
from tests.support.pruning_runs import prune_tiny
from tests.support.recorder import Recorder
from tests.support.tiny_directory import write_tiny_model

NAME = "tiny@prn-1"
HEAL = Heal(
    num_tokens=30 * 64,
    rank=4,
    learning_rate=5e-3,
    batch_tokens=64,
    steps_per_check=10,
    depths=Depths.DEEPEST,
)
ELASTIC = replace(HEAL, depths=Depths.ALL)


@dataclass(frozen=True)
class Healed:
    """Directories of a model store, and what was published in it."""

    data_dir: Path
    pruned: Manifest
    manifest: Manifest
    recorder: Recorder

    @property
    def source(self) -> Path:
        return self.data_dir / "checkpoints" / NAME

    @property
    def target(self) -> Path:
        return self.data_dir / "checkpoints" / healed_name(NAME)


@pytest.fixture(scope="session")
def pruned_data_dir(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A data directory with a repaired checkpoint of a tiny model. Only for reading."""
    data_dir = tmp_path_factory.mktemp("pruned")
    write_tiny_model(data_dir / "models" / "tiny")
    text = data_dir / "text.txt"
    text.write_text("\n".join(f"{number} lazy dogs, {7 * number} foxes" for number in range(900)))
    calibration = CalibrationSpec(Dataset.FILE, num_samples=4, seqlen=8, path=str(text))
    evaluation = Evaluation(num_samples=128)  # narrow intervals, for its gate
    spec = PruneSpec("tiny", 2, calibration=calibration, evaluation=evaluation)
    manifest, _ = prune_tiny(data_dir / "models", spec, NAME)
    return data_dir, manifest


@pytest.fixture(scope="session")
def healed(pruned_data_dir: tuple[Path, Manifest]) -> Healed:
    """The same after healing. Only for reading."""
    data_dir, pruned = pruned_data_dir
    recorder = Recorder()
    manifest = heal_tiny(data_dir, HEAL, healed_name(NAME), recorder)
    return Healed(data_dir, pruned, manifest, recorder)


@pytest.fixture(scope="session")
def elastic(
    pruned_data_dir: tuple[Path, Manifest], tmp_path_factory: pytest.TempPathFactory
) -> Healed:
    """The same, healed at all depths. Only for reading."""
    data_dir = tmp_path_factory.mktemp("elastic") / "data"
    shutil.copytree(pruned_data_dir[0], data_dir, ignore=shutil.ignore_patterns("*+*"))
    recorder = Recorder()
    manifest = heal_tiny(data_dir, ELASTIC, healed_name(NAME), recorder)
    return Healed(data_dir, pruned_data_dir[1], manifest, recorder)


def heal_tiny(
    data_dir: Path,
    heal: Heal,
    name: str,
    observer: Recorder,
    patience_s: float = 60,
    resources: Resources | None = None,
) -> Manifest:
    checkpoints = data_dir / "checkpoints"
    return heal_checkpoint(
        heal,
        HealedPlaces(checkpoints / NAME, checkpoints / name, data_dir / "searches" / name),
        models=ModelStore(data_dir / "models"),
        observer=observer,
        patience_s=patience_s,
        resources=resources,
    )
