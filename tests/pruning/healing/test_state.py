"""The state of a training is read as it was written, or not at all."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pruning.healing.record import Check, Progress
from pruning.healing.state import TrainingNotSaved, TrainingState, read_state, save_state
from pruning.worker.run import describe
from tests.support.full_disk import full_disk

CHECKS = (Check(0, 0, 3.0, {"prose": 3.0}), Check(5, 40, 2.0, {"prose": 2.0}))
STATE = TrainingState(
    Progress("d", 7, 56, 1.5, 1, (2.5, 1 / 3), CHECKS),
    {"a.lora_A.weight": torch.randn(2, 3)},
    {"a.lora_A.weight": torch.randn(2, 3)},
    {"a.lora_A.weight": torch.randn(2, 3)},
    {"a.lora_A.weight": torch.rand(2, 3)},
)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, STATE)
    found = read_state(path, "d")
    assert found is not None
    assert found.progress == STATE.progress
    assert found.progress.best == CHECKS[1]
    for part in ("adapter", "best", "mean", "square"):
        [(name, tensor)] = getattr(found, part).items()
        assert torch.equal(tensor, getattr(STATE, part)[name])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_that_of_another_training_is_not_used(tmp_path: Path) -> None:
    save_state(tmp_path / "state", STATE)
    assert read_state(tmp_path / "state", "other") is None


@pytest.mark.parametrize("damage", [b"", b"no safetensors", None])
def test_a_damaged_one_is_not_used(damage: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, STATE)
    path.write_bytes(path.read_bytes()[:-9] if damage is None else damage)
    assert read_state(path, "d") is None
    assert read_state(tmp_path / "missing", "d") is None


def test_a_full_disk_leaves_the_old_one_and_is_said(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, STATE)
    with full_disk(), pytest.raises(TrainingNotSaved, match="free disk space") as caught:
        save_state(path, replace(STATE, progress=Progress("e")))
    assert read_state(path, "d") is not None
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert describe(caught.value).code == "disk_full"


def test_losses_keep_all_their_digits(tmp_path: Path) -> None:
    save_state(tmp_path / "state", STATE)
    found = read_state(tmp_path / "state", "d")
    assert found is not None
    assert found.progress.losses[1] == 1 / 3
    assert not math.isnan(found.progress.seconds)
