"""A run from spec to checkpoint: what its observer receives, and what it publishes."""

import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

import pytest
import torch

from pruning.checkpoints.store import CheckpointStore, Manifest, repair_of
from pruning.data.calibration import calibrate
from pruning.data.corpora import CalibrationError
from pruning.models.blocks import view
from pruning.models.store import ModelStore
from pruning.pipeline import prune
from pruning.repair.folding import folded
from pruning.search.dense_model import DenseModel, load_dense_model
from pruning.search.scoring import PlainScorer
from pruning.search.state import SearchState
from pruning.sleb import TooManyRemovals, sleb
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Repair
from tests.support.quick import slow_but
from tests.support.recorder import Recorder, Stop
from tests.support.tiny_directory import NUM_BLOCKS, spoil_weights, write_tiny_model

TEXT = CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=12)
SPEC = PruneSpec("tiny", num_remove=3, calibration=TEXT)
UNREPAIRED = replace(SPEC, repair=Repair.NONE)


def run(
    models_dir: Path,
    observer: Recorder,
    spec: PruneSpec = SPEC,
    name: str = "tiny@prn-1",
    earlier: SearchState | None = None,
) -> Manifest:
    target = models_dir.parent / "checkpoints" / name
    models = ModelStore(models_dir)
    return prune(spec, name=name, target=target, models=models, observer=observer, earlier=earlier)


def test_a_run_tells_every_step_and_publishes_what_the_search_found(tiny_models_dir: Path) -> None:
    recorder = Recorder()
    manifest = run(tiny_models_dir, recorder)
    assert recorder.phases == ["load", "calibrate", "search", "repair", "evaluate", "publish"]
    assert recorder.evaluations == [(done, 9) for done in range(4 + 3 + 2 + 1)]
    assert manifest.removed_blocks == tuple(removal.block for removal in recorder.removals)
    assert manifest.quality.losses[1:] == tuple(removal.loss for removal in recorder.removals)
    assert len(manifest.quality.perplexities) == 4
    assert manifest.num_parameters < manifest.dense_num_parameters
    store = CheckpointStore(tiny_models_dir.parent / "checkpoints")
    assert store.manifest("tiny@prn-1") == manifest


def test_weights_of_the_search_are_gone_when_others_are_published(
    tiny_models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[ReferenceType[DenseModel]] = []

    def load(*args: Any, **options: Any) -> DenseModel:
        loaded.append(ref(dense := load_dense_model(*args, **options)))
        return dense

    monkeypatch.setattr("pruning.pipeline.load_dense_model", load)
    monkeypatch.setattr("pruning.search.dense_model.load_dense_model", load)
    alive: list[list[bool]] = []

    def confirm() -> None:
        gc.collect()
        alive.append([each() is not None for each in loaded])

    prune(
        replace(SPEC, dtype="bfloat16", save_dtype="float32"),
        name="tiny@prn-1",
        target=tiny_models_dir.parent / "checkpoints" / "tiny@prn-1",
        models=ModelStore(tiny_models_dir),
        observer=Recorder(),
        confirm=confirm,
    )
    assert alive[-1] == [False, True]


def test_the_order_is_that_of_the_plain_search(tiny_models_dir: Path) -> None:
    manifest = run(tiny_models_dir, Recorder())
    dense = ModelStore(tiny_models_dir).load("tiny")
    windows = calibrate(TEXT, dense.model, dense.tokenizer)
    found = sleb(PlainScorer(dense.model, windows.token_ids), NUM_BLOCKS, 3)
    assert manifest.removed_blocks == tuple(removal.block for removal in found)
    assert manifest.calibration["digest"] == windows.digest


@pytest.mark.slow
def test_the_checkpoint_is_the_view_to_any_program(tiny_models_dir: Path, tmp_path: Path) -> None:
    """Loaded by transformers in a process that does not import this project."""
    manifest = run(tiny_models_dir, Recorder())
    path = tiny_models_dir.parent / "checkpoints" / manifest.name
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        "ids = AutoTokenizer.from_pretrained(sys.argv[1])('the lazy dog', return_tensors='pt')\n"
        "assert not any(name in sys.modules for name in ('pruning', 'app'))\n"
        "torch.save((ids.input_ids, model(**ids).logits.detach()), sys.argv[2])\n"
    )
    output = tmp_path / "logits.pt"
    command = [sys.executable, "-P", "-c", code, str(path), str(output)]
    subprocess.run(command, check=True, cwd=tmp_path)
    token_ids, logits = torch.load(output, weights_only=True)
    dense = ModelStore(tiny_models_dir).load("tiny").model
    repaired = repair_of(path, len(manifest.removed_blocks))
    assert repaired is not None
    expected = view(dense, manifest.keep, folded(dense, manifest.keep, repaired))
    with torch.inference_mode():
        torch.testing.assert_close(logits, expected(token_ids).logits)


def test_tokenizer_and_template_are_the_parents_byte_for_byte(tiny_models_dir: Path) -> None:
    manifest = run(tiny_models_dir, Recorder())
    path = tiny_models_dir.parent / "checkpoints" / manifest.name
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (path / name).read_bytes() == (tiny_models_dir / "tiny" / name).read_bytes()
    removal = json.loads((path / "removal.json").read_text())
    assert [entry["block"] for entry in removal] == list(manifest.removed_blocks)
    card = (path / "README.md").read_text()
    assert "base_model: tiny" in card
    assert manifest.calibration["digest"] in card


@pytest.fixture(scope="module")
def unstopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Recorder]:
    models_dir, recorder = tmp_path_factory.mktemp("unstopped") / "models", Recorder()
    write_tiny_model(models_dir / "tiny")
    return run(models_dir, recorder, UNREPAIRED, name="tiny@whole"), recorder


@pytest.mark.parametrize(
    "stop_after",
    slow_but(range(1, 9), 4),  # of rounds of 4, 3 and 2
)
def test_a_stopped_run_publishes_nothing_and_resumes_to_the_same_end(
    tiny_models_dir: Path, stop_after: int, unstopped: tuple[Manifest, Recorder]
) -> None:
    """Wherever a run stops, no candidate is scored twice, and all numbers are the same."""
    expected, whole = unstopped
    stopped, resumed = Recorder(stop_after=stop_after), Recorder()
    with pytest.raises(Stop):
        run(tiny_models_dir, stopped, UNREPAIRED, name="tiny@cut")
    assert CheckpointStore(tiny_models_dir.parent / "checkpoints").names() == []
    found = run(tiny_models_dir, resumed, UNREPAIRED, "tiny@cut", stopped.state)
    assert found.removed_blocks == expected.removed_blocks
    assert found.quality == expected.quality
    assert [*stopped.removals, *resumed.removals] == whole.removals
    assert resumed.evaluations == [(done, 9) for done in range(stop_after, 10)]
    assert len(stopped.scored) + len(resumed.scored) == 9


@pytest.mark.slow
def test_what_was_found_on_other_windows_is_not_built_upon(
    tiny_models_dir: Path, unstopped: tuple[Manifest, Recorder]
) -> None:
    other = replace(UNREPAIRED, calibration=replace(TEXT, seed=1))
    earlier, found, whole = Recorder(), Recorder(), unstopped[1]
    run(tiny_models_dir, earlier, other, name="tiny@other")
    run(tiny_models_dir, found, UNREPAIRED, "tiny@found", earlier.state)
    assert found.evaluations[0] == (0, 9)
    assert found.removals == whole.removals


def test_a_run_that_cannot_end_is_refused_before_the_weights_are_read(
    tiny_models_dir: Path,
) -> None:
    recorder = Recorder()
    spoil_weights(tiny_models_dir / "tiny")
    with pytest.raises(TooManyRemovals, match="only 4 can be removed"):
        run(tiny_models_dir, recorder, PruneSpec("tiny", num_remove=5))
    assert recorder.phases == []


def test_text_that_will_not_do_ends_the_run_without_a_trace(tiny_models_dir: Path) -> None:
    calibration = CalibrationSpec(dataset=Dataset.FILE, path=str(tiny_models_dir / "none.txt"))
    with pytest.raises(CalibrationError):
        run(tiny_models_dir, Recorder(), PruneSpec("tiny", num_remove=1, calibration=calibration))
    assert not (tiny_models_dir.parent / "checkpoints").exists()
