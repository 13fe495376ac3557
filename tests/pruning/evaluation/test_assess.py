"""What a run measures of its result: quantized weights and the paper's tasks beside the curve."""

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from pruning import extras
from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.checkpoints.trajectory import legend
from pruning.data.calibration import held_out
from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.quality import Quantized
from pruning.evaluation.task_data import task_folder
from pruning.evaluation.task_errors import TaskUnusable, ZeroShotUnavailable
from pruning.evaluation.zero_shot import answer_tasks
from pruning.models.architectures import CannotQuantize
from pruning.models.blocks import view
from pruning.models.quantize import quantized
from pruning.models.store import ModelStore, load
from pruning.pipeline import prune
from pruning.search.dense_model import Resources
from pruning.spec import InvalidSpec
from pruning.spec.calibration import CalibrationSpec, Dataset
from pruning.spec.prune import PruneSpec, Quantize, Repair
from pruning.spec.tasks import PAPER_TASKS
from tests.support.losses import mean_loss
from tests.support.pruning_runs import RUN
from tests.support.recorder import Recorder
from tests.support.task_files import write_task_files
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_directory import spoil_weights
from tests.support.zero_shot_tasks import write_tasks

SPEC = PruneSpec(
    "tiny", num_remove=2, calibration=CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=12)
)


def run(
    models_dir: Path, spec: PruneSpec, observer: Recorder, resources: Resources | None = None
) -> Manifest:
    return prune(
        spec,
        name="tiny@prn-1",
        target=CheckpointStore(models_dir.parent / "checkpoints").path("tiny@prn-1"),
        models=ModelStore(models_dir),
        observer=observer,
        resources=resources,
    )


def published(models_dir: Path) -> Path:
    return CheckpointStore(models_dir.parent / "checkpoints").path("tiny@prn-1")


@pytest.mark.slow
@pytest.mark.parametrize("weights", Quantize)
def test_the_quantized_model_is_measured_on_the_same_windows_as_the_others(
    tiny_models_dir: Path, weights: Quantize
) -> None:
    spec = replace(SPEC, quantize=weights)
    manifest = run(tiny_models_dir, spec, Recorder())
    loaded = load(tiny_models_dir / "tiny")
    windows = held_out(spec.calibration, loaded.model, loaded.tokenizer).token_ids
    pruned = load(published(tiny_models_dir)).model
    dense_perplexity, *_, pruned_perplexity = manifest.quality.perplexities
    found = manifest.quality.quantized
    assert found is not None
    assert found.weights == weights.value
    assert found.perplexity == pytest.approx(exp(mean_loss(quantized(pruned, weights), windows)))
    assert pruned_perplexity == pytest.approx(exp(mean_loss(pruned, windows)))
    assert dense_perplexity == pytest.approx(exp(mean_loss(loaded.model, windows)))
    assert (
        len({round(value, 6) for value in (dense_perplexity, pruned_perplexity, found.perplexity)})
        == 3
    )


def test_what_is_published_has_plain_weights(tiny_models_dir: Path) -> None:
    spec = replace(SPEC, quantize=Quantize.INT8, repair=Repair.NONE)
    manifest = run(tiny_models_dir, spec, Recorder())
    path = published(tiny_models_dir)
    expected = view(load(tiny_models_dir / "tiny").model, manifest.keep).state_dict()
    found = load(path).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "published weights are not quantized" in (path / "README.md").read_text(encoding="utf-8")


def test_tasks_are_asked_of_the_dense_model_and_of_the_published_one(
    tiny_models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    files = write_task_files(tmp_path / "files", "arc_easy", "lambada_openai")
    resources = Resources(tasks_dir=write_tasks(tmp_path / "tasks", "piqa"), task_data_dir=files)
    spec = replace(SPEC, tasks=("lambada_openai", "piqa", "arc_easy"), task_questions=20)
    manifest = run(tiny_models_dir, spec, Recorder(), resources)
    dense = load(tiny_models_dir / "tiny")
    pruned = load(published(tiny_models_dir)).model
    found = manifest.quality.tasks
    assert [each.task for each in found] == [*spec.tasks]
    assert [each.num_questions for each in found] == [3, 20, 6]
    assert [each.num_available for each in found] == [3, 40, 6]
    in_files = ("lambada_openai", "arc_easy")
    for folder, names in (
        (task_folder(files, in_files), in_files),
        (nullcontext(tmp_path / "tasks"), ("piqa",)),
    ):
        with folder as at:
            own, whole = (
                answer_tasks(model, dense.tokenizer, names, tasks_dir=at, limit=20)
                for model in (pruned, dense.model)
            )
        for after, before in zip(own, whole, strict=True):
            [paired] = [each for each in found if each.task == after.score.task]
            assert after.answers is not None
            assert before.answers is not None
            assert paired == after.answers.against(before.answers)
            assert paired.standard_error == pytest.approx(after.score.standard_error)
    card = (published(tiny_models_dir) / "README.md").read_text(encoding="utf-8")
    data: dict[str, Any] = yaml.safe_load(ModelCard(card).data.to_yaml())
    results = data["model-index"][0]["results"]
    shown = {
        (result["dataset"]["type"], result["dataset"].get("config")): metric["value"]
        for result in results
        for metric in result["metrics"]
        if metric["type"] == "accuracy"
    }
    assert shown["allenai/ai2_arc", "ARC-Easy"] == pytest.approx(found[2].accuracy, rel=1e-4)
    assert len(shown) == 3
    assert re.search(r"\| arc_easy +\| +6 \|", card.split("## Tasks")[1])
    assert Manifest.from_json(manifest.to_json()).quality == manifest.quality


def test_a_manifest_from_before_says_that_nothing_of_it_was_measured() -> None:
    before = json.loads(RUN.to_json())
    for name in ("quantized", "tasks"):
        del before["quality"][name]
    assert Manifest.from_json(json.dumps(before)) == RUN


def test_scores_of_older_releases_are_not_taken_for_answers() -> None:
    before = json.loads(RUN.to_json())
    before["quality"]["zero_shot"] = {"dense": [], "pruned": []}
    before["spec"]["zero_shot"] = True
    manifest = Manifest.from_json(json.dumps(before))
    assert manifest.quality == RUN.quality
    spec = PruneSpec.from_dict(manifest.spec)
    assert (spec.tasks, spec.task_questions) == (PAPER_TASKS, None)


def test_a_manifest_with_impossible_answers_is_no_manifest() -> None:
    task = PairedTask("piqa", 0.5, 40, 10, 5, 2, 3)
    whole = replace(RUN, quality=replace(RUN.quality, tasks=(task,)))
    assert Manifest.from_json(whole.to_json()) == whole
    for change in ({"both": -1}, {"both": "10"}, {"chance": 2}, {"other": 1}):
        data = json.loads(whole.to_json())
        data["quality"]["tasks"][0] |= change
        with pytest.raises(ValueError, match=r"tasks|answers|argument"):
            Manifest.from_json(json.dumps(data))


def none_found(_name: str) -> None:
    return None


@pytest.mark.parametrize(
    ("spec", "missing", "raised"),
    [
        (replace(SPEC, tasks=("piqa",)), extras, ZeroShotUnavailable),
        (replace(SPEC, tasks=("piqa",)), None, TaskUnusable),
        (replace(SPEC, tasks=("arc_easy",)), None, TaskUnusable),
        (replace(SPEC, tasks=("boolq",)), None, InvalidSpec),
    ],
)
def test_what_will_be_missing_is_said_before_the_weights_are_read(
    tiny_models_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spec: PruneSpec,
    missing: object,
    raised: type[Exception],
) -> None:
    if missing is not None:
        monkeypatch.setattr(missing, "find_spec", none_found)
    tasks_dir = write_tasks(tmp_path / "tasks", *PAPER_TASKS)
    (tasks_dir / "questions.jsonl").unlink()
    files = write_task_files(tmp_path / "files", "arc_easy")
    (files / "arc_easy.jsonl").write_text("{}\n")
    spoil_weights(tiny_models_dir / "tiny")
    observer = Recorder()
    with pytest.raises(raised):
        run(tiny_models_dir, spec, observer, Resources(tasks_dir=tasks_dir, task_data_dir=files))
    assert observer.phases == ["load"]


def test_a_family_that_cannot_be_quantized_is_refused_before_its_weights_are_read(
    tmp_path: Path,
) -> None:
    write_checkpoint(tmp_path / "models" / "tiny", "gpt2")
    spoil_weights(tmp_path / "models" / "tiny")
    with pytest.raises(CannotQuantize, match="gpt2"):
        run(tmp_path / "models", replace(SPEC, quantize=Quantize.INT8), Recorder())


def test_a_last_block_that_must_stay_is_protected_before_weights_are_read(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "models" / "tiny", "gemma4_text")
    spoil_weights(tmp_path / "models" / "tiny")
    with pytest.raises(InvalidSpec, match="set protect_last to 1 or more") as refused:
        run(tmp_path / "models", replace(SPEC, protect_last=0), Recorder())
    assert refused.value.param == "protect_last"


def test_the_summary_has_all_of_it_side_by_side() -> None:
    quality = replace(RUN.quality, quantized=Quantized("int8", 126.5))
    told = legend(replace(RUN, quality=quality), ())
    assert told[0].startswith(
        "quantized: perplexity 50.00 dense, 125.00 pruned, 126.50 pruned with"
    )
    assert legend(RUN, ()) == []
