"""The state of a training is read as it was written, or not at all."""

import math
from pathlib import Path

import pytest
import torch

from pruning.healing import state as module
from pruning.healing.progress import Check, Progress
from pruning.healing.state import TrainingState, read_state, save_state

CHECKS = (Check(0, 0, 3.0, {"prose": 3.0}), Check(5, 40, 2.0, {"prose": 2.0}))
STATE = TrainingState(
    Progress("d", 7, 56, 1.5, 1, (2.5, 1 / 3), CHECKS),
    {"a.lora_A.weight": torch.randn(2, 3)},
    {"a.lora_A.weight": torch.randn(2, 3)},
    {"a.lora_A.weight": torch.randn(2, 3)},
    {"a.lora_A.weight": torch.rand(2, 3)},
)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "state.safetensors"
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


def test_a_process_that_dies_while_writing_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    save_state(path, STATE)

    def die(*_args: object, **_more: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(module, "save_file", die)
    with pytest.raises(OSError, match="full"):
        save_state(path, TrainingState(Progress("e"), {}, {}))
    assert read_state(path, "d") is not None


def test_losses_keep_all_their_digits(tmp_path: Path) -> None:
    save_state(tmp_path / "state", STATE)
    found = read_state(tmp_path / "state", "d")
    assert found is not None
    assert found.progress.losses[1] == 1 / 3
    assert not math.isnan(found.progress.seconds)
