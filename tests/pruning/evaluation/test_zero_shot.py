"""Tasks of lm-eval on views, with a task and data of our own: no network."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from pruning import extras
from pruning.evaluation.results import TaskScore, mean_accuracy
from pruning.evaluation.task_errors import TaskUnusable, ZeroShotUnavailable
from pruning.evaluation.zero_shot import answer_tasks
from pruning.models.blocks import view
from pruning.models.store import LoadedModel, load
from pruning.spec.tasks import PAPER_TASKS
from tests.support.zero_shot_tasks import DOCUMENTS, TASK, write_tasks

KEEP = (0, 2, 5)


@pytest.fixture
def tasks_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the task; what the data set library keeps goes elsewhere in ``tmp_path``."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return write_tasks(tmp_path / "tasks", "toy")


@torch.inference_mode()
def by_hand(model: PreTrainedModel, loaded: LoadedModel) -> dict[str, float]:
    """Accuracy by the sum of log-likelihoods, and by that sum over characters."""
    right: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    for document in DOCUMENTS:
        options = document["options"]
        assert isinstance(options, Sequence)
        logs = [_log_likelihood(model, loaded, str(document["question"]), o) for o in options]
        per_character = [log / len(text) for log, text in zip(logs, options, strict=True)]
        right["acc"].append(logs.index(max(logs)) == document["label"])
        best = per_character.index(max(per_character))
        right["acc_norm"].append(best == document["label"])
    return {metric: sum(found) / len(found) for metric, found in right.items()}


def _log_likelihood(
    model: PreTrainedModel, loaded: LoadedModel, question: str, option: str
) -> float:
    whole = loaded.tokenizer(f"{question} {option}").input_ids
    begin = len(loaded.tokenizer(question).input_ids)
    logits = model(torch.tensor([whole])).logits[0, begin - 1 : -1].float()
    targets = torch.tensor(whole[begin:])
    return -F.cross_entropy(logits, targets, reduction="sum").item()


@pytest.mark.slow
def test_scores_are_those_of_a_loop_for_dense_and_pruned(
    tiny_loaded: LoadedModel, tasks_dir: Path
) -> None:
    found = []
    for model in (tiny_loaded.model, view(tiny_loaded.model, KEEP)):
        tokenizer = tiny_loaded.tokenizer
        (answered,) = answer_tasks(model, tokenizer, ["toy"], tasks_dir=tasks_dir)
        score = answered.score
        assert score.metrics == pytest.approx(by_hand(model, tiny_loaded))
        assert (score.task, score.metric, score.num_samples) == ("toy", "acc_norm", len(DOCUMENTS))
        assert score.value == score.metrics["acc_norm"]
        assert score.standard_error is not None
        assert score.num_shots == 0
        found.append(score.metrics)
    assert found[0] != found[1]


def test_a_limit_takes_the_first_samples(tiny_loaded: LoadedModel, tasks_dir: Path) -> None:
    (answered,) = answer_tasks(
        tiny_loaded.model, tiny_loaded.tokenizer, ["toy"], tasks_dir=tasks_dir, limit=3
    )
    assert answered.score.num_samples == 3


def test_the_dense_weights_stay_as_they_are(tiny_model_dir: Path, tasks_dir: Path) -> None:
    """Even of a model whose config asks for tied weights that were stored untied."""
    loaded = load(tiny_model_dir)
    before = {name: values.clone() for name, values in loaded.model.state_dict().items()}
    loaded.model.config.tie_word_embeddings = True
    answer_tasks(view(loaded.model, KEEP), loaded.tokenizer, ["toy"], tasks_dir=tasks_dir, limit=1)
    after = loaded.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_task_that_has_no_data_is_named(
    tiny_loaded: LoadedModel, tasks_dir: Path, tmp_path: Path
) -> None:
    (tasks_dir / "lost.yaml").write_text(
        TASK.format(data=tmp_path / "none.jsonl").replace("task: toy", "task: lost")
    )
    with pytest.raises(TaskUnusable, match="data of lost"):
        answer_tasks(tiny_loaded.model, tiny_loaded.tokenizer, ["lost"], tasks_dir=tasks_dir)


@pytest.mark.slow  # the thousands of tasks of lm-eval are read before it is known
def test_a_task_that_is_unknown_is_named(tiny_loaded: LoadedModel, tasks_dir: Path) -> None:
    with pytest.raises(TaskUnusable, match="unknown tasks: no-such-task"):
        answer_tasks(
            tiny_loaded.model, tiny_loaded.tokenizer, ["no-such-task"], tasks_dir=tasks_dir
        )


def test_without_the_extra_it_says_what_to_install(
    tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_none(name: str) -> None:
        assert importlib.util.find_spec(name)  # or the tests above ran on nothing

    monkeypatch.setattr(extras, "find_spec", find_none)
    with pytest.raises(ZeroShotUnavailable, match=r"pip install 'sleb-serve\[eval\]'"):
        answer_tasks(tiny_loaded.model, tiny_loaded.tokenizer, ["toy"])


def test_the_papers_mean_is_of_its_five_tasks() -> None:
    scores = [
        TaskScore(task, "acc", value / 10, None, 1, 0, {})
        for value, task in enumerate((*PAPER_TASKS, "other"))
    ]
    assert mean_accuracy(scores) == pytest.approx(0.2)
    assert mean_accuracy(scores[1:]) is None
