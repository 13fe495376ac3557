"""``sleb heal``, and what ``sleb eval`` compares a healed model with."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.cli.main import app
from app.commands.evaluate import Tasks, run_evaluation
from app.commands.heal import _place_taken, _print, run_heal
from app.commands.subject import subject_of
from pruning.checkpoints.publish import CheckpointExists
from pruning.checkpoints.store import CheckpointNotFound, Manifest, read_manifest
from pruning.config import WorkerSettings
from pruning.heal_checkpoint import healing_digest
from pruning.healing.adapter import Tensors, read_adapter
from pruning.healing.lock import HealingInProgress, locked
from pruning.models.blocks import view
from pruning.search.dense_model import Resources, load_dense_model
from pruning.spec.heal import Depths
from pruning.spec.prune import Resident
from tests.support.healing import HEAL, NAME, Healed
from tests.support.logits import logits_of

HEALED = f"{NAME}+healed"
SHORT = replace(HEAL, num_tokens=HEAL.batch_tokens, control=False)  # one step
IDS = torch.arange(5, 17).unsqueeze(0)


@pytest.fixture
def data_dir(pruned_data_dir: tuple[Path, Manifest], tmp_path: Path) -> Path:
    shutil.copytree(pruned_data_dir[0], tmp_path / "data", ignore=shutil.ignore_patterns("*+*"))
    return tmp_path / "data"


@pytest.mark.slow
def test_a_named_checkpoint_is_healed_beside_itself_and_can_be_named(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = WorkerSettings(data_dir=data_dir, threads=1)
    run_heal(HEAL, NAME, None, settings, as_json=False)
    printed = capsys.readouterr()
    for words in ("healed", "control", "recovered", "kept: step", "published in"):
        assert words in printed.out
    assert "held-out loss" in printed.err
    healed = data_dir / "checkpoints" / HEALED
    assert printed.out.endswith(f"sleb export {healed} {healed}-exported\n")
    assert read_manifest(healed).healing is not None
    assert not (data_dir / "searches").exists()
    with pytest.raises(CheckpointExists, match="another --out"):
        run_heal(HEAL, NAME, None, settings, as_json=False)


def test_a_directory_is_healed_at_another_place_and_told_as_json(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = WorkerSettings(data_dir=data_dir, threads=1)
    source, out = data_dir / "checkpoints" / NAME, tmp_path / "out"
    run_heal(SHORT, str(source), out, settings, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["path"] == str(out)
    assert report["name"] == "out"
    assert report["healing"]["parent"] == NAME


def test_a_second_command_is_refused_at_once(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the same settings anywhere, and with others in the same place."""
    settings = WorkerSettings(data_dir=data_dir, threads=1)
    manifest = read_manifest(data_dir / "checkpoints" / NAME)
    with locked(data_dir / "searches" / healing_digest(HEAL, manifest), NAME):
        with pytest.raises(HealingInProgress, match="wait until it ends"):
            run_heal(HEAL, NAME, tmp_path / "out", settings, as_json=False)
        place = data_dir / "checkpoints" / HEALED
        with (
            _place_taken(place, settings),
            pytest.raises(HealingInProgress, match="healed is being healed"),
        ):
            run_heal(replace(HEAL, rank=2), NAME, None, settings, as_json=False)
    assert "The training state is saved" not in capsys.readouterr().err
    assert not (data_dir / "searches").exists()


@pytest.mark.slow
def test_every_depth_is_told_where_all_are_healed(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = WorkerSettings(data_dir=data_dir, threads=1)
    run_heal(replace(SHORT, depths=Depths.ALL), NAME, None, settings, as_json=False)
    shown = capsys.readouterr().out
    assert "with 1 block removed, recovered loss:" in shown
    assert "with 2 blocks removed, recovered loss:" in shown
    healed = read_manifest(data_dir / "checkpoints" / HEALED)
    unmeasured = replace(healed, quality=replace(healed.quality, domains=()))
    _print(unmeasured, Path("out"), as_json=False)
    assert "recovered" not in capsys.readouterr().out


def test_an_unknown_checkpoint_is_refused(data_dir: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no checkpoint named"):
        run_heal(HEAL, "tiny@missing", None, WorkerSettings(data_dir=data_dir), as_json=False)


@pytest.mark.parametrize("name", ["tiny", "tiny@-1", f"{NAME}-1"])
def test_what_is_no_whole_checkpoint_is_refused_with_the_newest_one(
    healed: Healed, name: str
) -> None:
    """The healed one is newer, and healed already."""
    settings = WorkerSettings(data_dir=healed.data_dir, threads=1)
    message = (
        f"'{name}': expected a whole checkpoint, as NAME@JOB; the newest checkpoint of tiny is "
    )
    with pytest.raises(CheckpointNotFound, match=re.escape(message + NAME) + "$"):
        run_heal(HEAL, name, None, settings, as_json=False)


def test_a_model_that_was_never_pruned_is_refused(data_dir: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"'other'.*; prune a model first"):
        run_heal(HEAL, "other", None, WorkerSettings(data_dir=data_dir), as_json=False)


def test_the_command_is_known() -> None:
    assert "heal" in {
        command.callback.__name__ for command in app.registered_commands if command.callback
    }


def test_a_healed_model_is_compared_with_its_raw_form_and_its_control(
    healed: Healed, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = WorkerSettings(data_dir=healed.data_dir, threads=1)
    tasks = Tasks(("prose",), has_probe=False, zero_shot=(), seqlen=16, num_windows=4)
    run_evaluation([HEALED, "tiny"], tasks, settings, as_json=True, out=None)
    found = {each["model"]: each for each in json.loads(capsys.readouterr().out)["evaluations"]}
    assert list(found) == [f"{NAME}+raw", HEALED, f"{HEALED}, control", "tiny"]
    ratios = {name: each["perplexities"][0]["ratio"] for name, each in found.items()}
    assert ratios["tiny"] is None
    assert ratios[f"{HEALED}, control"]["value"] == pytest.approx(1, abs=0.3)
    assert len({ratio["value"] for ratio in ratios.values() if ratio}) == 3


@pytest.mark.slow
def test_a_healed_model_is_asked_beside_its_control(
    healed: Healed, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its name and by its directory, whose weights are its own."""
    settings = WorkerSettings(data_dir=healed.data_dir, threads=1)
    tasks = Tasks((), has_probe=True, zero_shot=())
    names = [HEALED, str(healed.target)]
    run_evaluation(names, tasks, settings, as_json=True, out=None)
    found = json.loads(capsys.readouterr().out)["evaluations"]
    assert [one["model"] for one in found] == [
        part for name in names for part in (name, f"{name}, control")
    ]
    scores = [one["probe"]["score"] for one in found]
    assert scores[1] == scores[3]
    assert [one["num_blocks"] for one in found] == [4, 6, 4, 6]


def test_the_control_is_the_dense_model_with_the_adapter_that_was_stored(
    healed: Healed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(directory: Path) -> Tensors:
        return {name: tensor + 0.1 for name, tensor in read_adapter(directory).items()}

    monkeypatch.setattr("app.commands.subject.read_adapter", moved)  # it had nothing to learn here
    settings = WorkerSettings(data_dir=healed.data_dir)
    subject = subject_of(HEALED, settings).control
    assert subject is not None
    dense = load_dense_model(subject.path, Resident.MODEL, Resources(device="cpu"))
    own = subject.own_tensors(dense)
    assert len(own) == 7 * 6
    control = view(dense.model, range(6), dict(own))
    assert not torch.equal(logits_of(control, IDS), logits_of(dense.model, IDS))
    assert subject_of(NAME, settings).control is None
