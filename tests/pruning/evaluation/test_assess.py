"""What a run measures of its result: quantized weights and the paper's tasks beside the curve."""

import json
from dataclasses import replace
from math import exp
from pathlib import Path

import pytest
import torch

from pruning import extras
from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.checkpoints.trajectory import legend
from pruning.data.calibration import held_out
from pruning.evaluation.quality import Quantized
from pruning.evaluation.results import PAPER_TASKS, TaskScore, ZeroShot
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
from tests.support.losses import mean_loss
from tests.support.pruning_runs import RUN
from tests.support.recorder import Recorder
from tests.support.tiny_checkpoints import write_checkpoint
from tests.support.tiny_directory import spoil_weights
from tests.support.zero_shot_tasks import write_tasks

SPEC = PruneSpec(
    "tiny", num_remove=2, calibration=CalibrationSpec(Dataset.SELF, num_samples=4, seqlen=12)
)


def run(
    models_dir: Path, spec: PruneSpec, observer: Recorder, tasks_dir: Path | None = None
) -> Manifest:
    return prune(
        spec,
        name="tiny@prn-1",
        target=CheckpointStore(models_dir.parent / "checkpoints").path("tiny@prn-1"),
        models=ModelStore(models_dir),
        observer=observer,
        resources=Resources(tasks_dir=tasks_dir),
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


@pytest.mark.slow
def test_the_papers_tasks_are_asked_of_dense_and_of_all_removals(
    tiny_models_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tasks_dir = write_tasks(tmp_path / "tasks", *PAPER_TASKS)
    manifest = run(tiny_models_dir, replace(SPEC, zero_shot=True), Recorder(), tasks_dir)
    loaded = load(tiny_models_dir / "tiny")
    found = manifest.quality.zero_shot
    assert found is not None
    for model, scores in (
        (loaded.model, found.dense),
        (load(published(tiny_models_dir)).model, found.pruned),
    ):
        answered = answer_tasks(model, loaded.tokenizer, PAPER_TASKS, tasks_dir=tasks_dir)
        expected = [one.score for one in answered]
        assert list(scores) == expected
        assert [score.task for score in scores] == list(PAPER_TASKS)
    assert found.dense_mean != found.pruned_mean
    assert Manifest.from_json(manifest.to_json()).quality == manifest.quality


def test_a_manifest_from_before_says_that_nothing_of_it_was_measured() -> None:
    before = json.loads(RUN.to_json())
    for name in ("quantized", "zero_shot"):
        del before["quality"][name]
    assert Manifest.from_json(json.dumps(before)) == RUN


def none_found(_name: str) -> None:
    return None


@pytest.mark.parametrize(
    ("spec", "missing", "raised"),
    [
        (replace(SPEC, zero_shot=True), extras, ZeroShotUnavailable),
        (replace(SPEC, zero_shot=True), None, TaskUnusable),
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
    spoil_weights(tiny_models_dir / "tiny")
    observer = Recorder()
    with pytest.raises(raised):
        run(tiny_models_dir, spec, observer, tasks_dir)
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
    scores = [
        tuple(TaskScore(t, "acc", v, None, 1, 0, {}) for t in PAPER_TASKS) for v in (0.7, 0.6)
    ]
    quality = replace(RUN.quality, quantized=Quantized("int8", 126.5), zero_shot=ZeroShot(*scores))
    told = legend(replace(RUN, quality=quality), ())
    assert told[0].startswith(
        "quantized: perplexity 50.00 dense, 125.00 pruned, 126.50 pruned with"
    )
    assert told[1].startswith(
        "zero-shot: 0.7000 dense, 0.6000 pruned; mean accuracy on piqa, winogrande"
    )
    assert legend(RUN, ()) == []
