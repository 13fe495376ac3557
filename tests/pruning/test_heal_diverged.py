"""A healing whose learning rate is far too high: it says so, publishes nothing, keeps its state."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from app.commands.heal import run_heal
from pruning.checkpoints.store import CheckpointStore, Manifest, verify
from pruning.config import WorkerSettings
from pruning.healing.train import HealingDiverged, Training
from pruning.models.names import healed_name
from tests.support.healing import HEAL, NAME, heal_tiny
from tests.support.recorder import Recorder

pytestmark = pytest.mark.slow


@pytest.fixture
def data_dir(pruned_data_dir: tuple[Path, Manifest], tmp_path: Path) -> Path:
    shutil.copytree(pruned_data_dir[0], tmp_path / "data", ignore=shutil.ignore_patterns("*+*"))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (1e30, "loss nan .*: choose a learning rate below 1e.30"),
        (1e12, "closer to tiny on held-out text: choose a learning rate below 1e.12"),
    ],
)
def test_it_says_what_to_do_and_publishes_nothing(
    rate: float, message: str, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = WorkerSettings(data_dir=data_dir, threads=1)
    with pytest.raises(HealingDiverged, match=message):
        run_heal(replace(HEAL, learning_rate=rate), NAME, None, settings, as_json=False)
    assert "goes on" not in capsys.readouterr().err, "the same command would end in the same way"
    assert CheckpointStore(data_dir / "checkpoints").names() == [NAME]
    verify(data_dir / "checkpoints" / NAME)


def test_the_last_good_state_is_kept(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = Training._gradients

    def diverging(training: Training) -> float:
        loss = gradients(training)
        return math.nan if training.progress.step == 14 else loss

    monkeypatch.setattr(Training, "_gradients", diverging)
    with pytest.raises(HealingDiverged, match="step 15 of the healing has loss nan"):
        heal_tiny(data_dir, HEAL, healed_name(NAME), Recorder())
    assert CheckpointStore(data_dir / "checkpoints").names() == [NAME]
    monkeypatch.undo()
    rest = Recorder()
    heal_tiny(data_dir, HEAL, healed_name(NAME), rest)
    steps = [step for which, step in rest.healing_steps if which == "healed"]
    assert steps[0].number == 11, "it goes on behind the last measurement"
    assert all(math.isfinite(step.loss) for step in steps)
