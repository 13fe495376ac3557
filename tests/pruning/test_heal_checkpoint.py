"""Whole healings: what is published, what it is compared with, and how they resume."""

import json
import shutil
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pruning.checkpoints.publish import CheckpointExists
from pruning.checkpoints.store import Manifest, read_manifest, repair_of, verify
from pruning.data.corpora import CalibrationError
from pruning.evaluation.assess import assess_healed
from pruning.evaluation.pruned_losses import PrunedModel
from pruning.evaluation.quality_gate import QualityGateFailed
from pruning.evaluation.task_errors import TaskUnusable
from pruning.evaluation.zero_shot import answer_tasks
from pruning.healing.lock import HealingInProgress
from pruning.healing.record import NotHealable, Step
from pruning.models.blocks import NO_OWN, view
from pruning.models.store import load
from pruning.removal import kept
from pruning.repair.folding import folded
from pruning.search.dense_model import Resources, load_dense_model
from pruning.spec.evaluation import Gate, GateAction
from pruning.spec.prune import PruneSpec, Resident
from pruning.spec.tasks import PAPER_TASKS
from tests.support.healing import HEAL, NAME, Healed, heal_tiny
from tests.support.logits import logits_of
from tests.support.quick import slow_but
from tests.support.recorder import Recorder, Stop
from tests.support.tiny_directory import write_tiny_model
from tests.support.zero_shot_tasks import write_tasks

IDS = torch.arange(5, 17).unsqueeze(0)


@pytest.fixture
def data_dir(pruned_data_dir: tuple[Path, Manifest], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(pruned_data_dir[0], tmp_path / "data", ignore=shutil.ignore_patterns("*+*"))
    return tmp_path / "data"


def test_the_manifest_says_how_it_was_healed(healed: Healed) -> None:
    manifest = verify(healed.target)
    assert manifest == healed.manifest
    healing = manifest.healing
    assert healing is not None
    assert healing.parent == NAME
    assert healing.settings == HEAL
    assert healing.method is healed.pruned.repaired_by
    assert healing.run.num_tokens == HEAL.num_tokens
    assert len(healing.run.losses) == healing.run.num_steps == 30
    assert healing.run.best.loss < healing.run.checks[0].loss
    assert healing.run.best == min(healing.run.checks, key=lambda check: check.loss)
    assert manifest.parent == "tiny"
    assert manifest.removed_blocks == healed.pruned.removed_blocks
    assert manifest.spec["heal"] == HEAL.to_dict()
    assert manifest.repair is None


def test_no_text_is_trained_on_that_stops_or_measures(healed: Healed) -> None:
    healing = healed.manifest.healing
    assert healing is not None
    trained = [text for text in healing.texts if text.part == "train"]
    others = [text for text in healing.texts if text.part == "held_out"]
    assert [text.domain for text in trained] == ["text"]
    assert {text.domain for text in others} == {"text", "prose", "code"}
    used = json.loads((healed.source / "repair.json").read_text())
    num_windows = len(used["train"]["text"]["windows"])
    assert trained[0].num_windows > num_windows
    digests = {text.digest for text in healing.texts}
    assert not digests & {domain.digest for domain in healed.manifest.quality.domains}
    assert len(digests) == len(healing.texts)


def test_plain_transformers_load_the_healed_model(healed: Healed) -> None:
    dense = load(healed.data_dir / "models" / "tiny").model
    found = logits_of(AutoModelForCausalLM.from_pretrained(healed.target), IDS)
    changed = repair_of(healed.target, 2)
    assert changed is not None
    own = folded(dense, healed.manifest.keep, changed)
    assert torch.equal(found, logits_of(view(dense, healed.manifest.keep, own), IDS))
    repaired = logits_of(AutoModelForCausalLM.from_pretrained(healed.source), IDS)
    assert not torch.allclose(found, repaired, atol=1e-3)


# peft's wrapper asks transformers by an old name
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_the_adapter_lies_beside_it_in_the_format_of_peft(healed: Healed) -> None:
    plain = AutoModelForCausalLM.from_pretrained(healed.source)
    adapted: Any = PeftModel.from_pretrained(plain, healed.target / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(healed.target)
    torch.testing.assert_close(
        logits_of(adapted, IDS), logits_of(merged, IDS), rtol=1e-3, atol=1e-3
    )
    assert adapted.peft_config["default"].base_model_name_or_path == NAME


def test_only_the_changed_tensors_differ_and_are_counted(healed: Healed) -> None:
    healing = healed.manifest.healing
    assert healing is not None
    before, after = (
        load_file(path / "model.safetensors") for path in (healed.source, healed.target)
    )
    assert before.keys() == after.keys()
    changed = [name for name in after if not torch.equal(before[name], after[name])]
    assert healing.adapted == ((0, 3, 4, 5),)  # without 1 and 2
    assert len(changed) == 7 * 4 == len(healing.changed)
    assert sum(after[name].nbytes for name in changed) == healing.num_bytes


def test_it_is_measured_on_the_windows_of_the_pruned_model_with_a_control(healed: Healed) -> None:
    for before, after in zip(
        healed.pruned.quality.domains, healed.manifest.quality.domains, strict=True
    ):
        assert after.digest == before.digest
        assert after.control is not None
        assert after.control.loss == after.dense.loss  # there is nothing to learn from oneself
        assert after.healed == (None, after.served_after(2))
        assert after.served_after(1) == before.served_after(1)
        assert replace(after, healed=(), control=None) == before
    domains = {each.domain: each for each in healed.manifest.quality.domains}
    assert next(iter(domains)) == "documentation", "it took no part"
    text = domains["text"]
    served = text.served_after(2).perplexity
    assert healed.manifest.quality.perplexities[-1] == pytest.approx(served)
    assert healed.manifest.quality.perplexities[:-1] == healed.pruned.quality.perplexities[:-1]
    card = (healed.target / "README.md").read_text()
    assert "Healed from tiny@prn-1" in card
    assert "control × dense" in card
    assert "Control: the same training changes nothing in tiny" in card
    assert "No training" not in card


def test_the_control_ends_at_once_where_it_has_nothing_to_learn(healed: Healed) -> None:
    healing = healed.manifest.healing
    assert healing is not None
    assert healing.control is not None
    assert healing.control.num_steps == 0
    assert (healed.target / "control" / "adapter_model.safetensors").is_file()
    names = [name for name, _ in healed.recorder.healing_steps]
    assert names == ["healed"] * 30
    assert healed.recorder.phases == ["load", "calibrate", "heal", "evaluate", "publish"]
    assert not (healed.data_dir / "searches").exists()


@pytest.mark.parametrize(
    "number",  # of 30 steps, with a check after each tenth
    [pytest.param(3, marks=pytest.mark.slow), 21, pytest.param(30, marks=pytest.mark.slow)],
)
def test_a_healing_that_was_stopped_goes_on(number: int, data_dir: Path, healed: Healed) -> None:
    with pytest.raises(Stop):
        heal_tiny(data_dir, HEAL, "again", Recorder(stop_after_healing=number))
    assert not (data_dir / "checkpoints" / "again").exists()
    rest = Recorder()
    manifest = heal_tiny(data_dir, HEAL, "again", rest)
    assert manifest.healing is not None
    assert healed.manifest.healing is not None
    assert manifest.healing.run.losses == pytest.approx(
        healed.manifest.healing.run.losses, rel=1e-4
    )
    assert manifest.healing.run.best.loss == pytest.approx(
        healed.manifest.healing.run.best.loss, rel=1e-4
    )
    if number > 20:
        assert len(rest.healing_steps) < len(healed.recorder.healing_steps)
    assert not (data_dir / "searches").exists()


@pytest.mark.slow
def test_other_settings_do_not_go_on_with_it(data_dir: Path) -> None:
    with pytest.raises(Stop):
        heal_tiny(data_dir, HEAL, "again", Recorder(stop_after_healing=21))
    recorder = Recorder()
    heal = replace(HEAL, learning_rate=1e-3, control=False)
    manifest = heal_tiny(data_dir, heal, "again", recorder)
    assert len(recorder.healing_steps) == 30
    assert manifest.healing is not None
    assert manifest.healing.control is None
    assert manifest.quality.domains[0].control is None


@pytest.mark.slow
def test_a_second_healing_in_the_same_place_is_refused_at_once(data_dir: Path) -> None:
    class Twice(Recorder):
        def healing(self, which: str, step: Step) -> None:
            if step.number == 12:
                with pytest.raises(HealingInProgress, match=f"{NAME} is being healed"):
                    heal_tiny(data_dir, HEAL, "again", second, patience_s=0)
            super().healing(which, step)

    second = Recorder()
    manifest = heal_tiny(data_dir, replace(HEAL, control=False), "again", Twice())
    assert second.phases == ["load"]
    assert manifest.healing is not None
    assert manifest.healing.run.num_steps == 30


def test_what_is_published_is_not_trained_again(data_dir: Path) -> None:
    heal = replace(HEAL, num_tokens=64, control=False)
    manifest = heal_tiny(data_dir, heal, "again", Recorder())
    recorder = Recorder()
    assert heal_tiny(data_dir, heal, "again", recorder) == manifest
    assert recorder.phases == ["load"]
    with pytest.raises(CheckpointExists):
        heal_tiny(data_dir, HEAL, "again", recorder)
    assert not recorder.healing_steps
    assert not (data_dir / "searches").exists()


def test_a_healed_model_is_not_healed_again(healed: Healed, tmp_path: Path) -> None:
    copy = tmp_path / "data"
    shutil.copytree(healed.data_dir, copy)
    shutil.rmtree(copy / "checkpoints" / NAME)
    healed_copy = copy / "checkpoints" / healed.target.name
    healed_copy.rename(copy / "checkpoints" / NAME)
    with pytest.raises(NotHealable, match=f"heal {NAME}"):
        heal_tiny(copy, HEAL, "again", Recorder())


def test_another_parent_cannot_teach(data_dir: Path) -> None:
    shutil.rmtree(data_dir / "models" / "tiny")
    write_tiny_model(data_dir / "models" / "tiny", seed=7)
    with pytest.raises(NotHealable, match="tiny was replaced"):
        heal_tiny(data_dir, HEAL, "again", Recorder())


def test_changed_text_is_noticed_before_the_training(data_dir: Path) -> None:
    manifest = read_manifest(data_dir / "checkpoints" / NAME)
    text = Path(manifest.spec["calibration"]["path"])
    original = text.read_text()
    recorder = Recorder()
    try:
        text.write_text(original.replace("lazy", "busy"))
        with pytest.raises(CalibrationError, match="has changed since"):
            heal_tiny(data_dir, HEAL, "again", recorder)
    finally:
        text.write_text(original)
    assert not recorder.healing_steps


@pytest.mark.slow
def test_a_healing_is_published_in_the_type_of_its_source(data_dir: Path) -> None:
    """The source says that it was computed in another type than it was published in."""
    file = data_dir / "checkpoints" / NAME / "manifest.json"
    data = json.loads(file.read_text())
    data["spec"]["dtype"] = "bfloat16"
    file.write_text(json.dumps(data))
    manifest = heal_tiny(data_dir, replace(HEAL, control=False), "again", Recorder())
    published = load(data_dir / "checkpoints" / "again").model
    assert (manifest.dtype, published.dtype) == ("float32", torch.float32)
    dense = load(data_dir / "models" / "tiny").model
    name = "model.embed_tokens.weight"
    assert torch.equal(published.get_parameter(name), dense.get_parameter(name))


@pytest.mark.parametrize("is_met", slow_but((True, False), False))
def test_the_gate_of_the_spec_judges_the_healed_model(
    is_met: bool, data_dir: Path, healed: Healed
) -> None:
    """The dense model of the manifest is made better by a nat, as that of these tests is random."""
    file = data_dir / "checkpoints" / NAME / "manifest.json"
    data = json.loads(file.read_text())
    for domain in data["quality"]["domains"]:
        domain["dense"]["loss"] -= 1
    dense, *_, last = healed.manifest.quality.perplexities
    limit = exp(1) * last / dense * (1.3 if is_met else 0.7)
    data["spec"]["gate"] = {"max_perplexity_ratio": limit, "action": "refuse"}
    file.write_text(json.dumps(data))
    heal = replace(HEAL, control=False)
    if is_met:
        assert not heal_tiny(data_dir, heal, "again", Recorder()).quality.warnings
        return
    with pytest.raises(QualityGateFailed, match="perplexity went from"):
        heal_tiny(data_dir, heal, "again", Recorder())
    assert not (data_dir / "checkpoints" / "again").exists()


@pytest.mark.slow
def test_tasks_and_quantized_weights_are_those_of_the_healed_model(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tasks_dir = write_tasks(tmp_path / "tasks", *PAPER_TASKS)
    file = data_dir / "checkpoints" / NAME / "manifest.json"
    data = json.loads(file.read_text())
    data["spec"] |= {"tasks": [*PAPER_TASKS], "task_questions": None, "quantize": "int4"}
    file.write_text(json.dumps(data))
    resources = Resources(tasks_dir=tasks_dir)
    heal = replace(HEAL, control=False)
    quality = heal_tiny(data_dir, heal, "again", Recorder(), resources=resources).quality
    model = load(data_dir / "checkpoints" / "again")
    answered = answer_tasks(model.model, model.tokenizer, PAPER_TASKS, tasks_dir=tasks_dir)
    found = {task.task: task.accuracy for task in quality.tasks}
    assert found == {one.score.task: pytest.approx(one.score.value) for one in answered}
    assert quality.quantized is not None
    assert quality.quantized.perplexity != quality.perplexities[-1]
    assert quality.quantized.perplexity == pytest.approx(quality.perplexities[-1], rel=0.5)
    (tasks_dir / "questions.jsonl").unlink()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "empty")
    with pytest.raises(TaskUnusable):
        heal_tiny(data_dir, heal, "other", observer := Recorder(), resources=resources)
    assert observer.phases[-1] == "calibrate", "it is said before the training"


@pytest.mark.slow
def test_the_gate_compares_with_the_control_if_that_is_better(healed: Healed) -> None:
    """Any two models stand for the healed one and its control: the best one for the control."""
    path = healed.data_dir / "models" / "tiny"
    dense = load_dense_model(path, Resident.MODEL, Resources(device="cpu"))
    spec, before = PruneSpec.from_dict(healed.pruned.spec), healed.pruned.quality
    models = [PrunedModel(kept(6, (block,)), NO_OWN) for block in range(1, 5)]
    found = [assess_healed(spec, dense, before, {2: model}, None).perplexities for model in models]
    whole = found[0][0]
    worst, best = (
        choose(zip((curve[-1] for curve in found), models, strict=True), key=lambda pair: pair[0])
        for choose in (max, min)
    )
    assert best[0] < whole  # else the control would not count
    limit = max(1.0, worst[0] / whole) * 1.10  # beyond the upper end of the interval
    assert worst[0] / best[0] > limit
    gated = replace(spec, gate=Gate(max_perplexity_ratio=limit, action=GateAction.REFUSE))
    assert not assess_healed(gated, dense, before, {2: worst[1]}, None).warnings
    with pytest.raises(QualityGateFailed, match=r"\(control\) to"):
        assess_healed(gated, dense, before, {2: worst[1]}, best[1])
