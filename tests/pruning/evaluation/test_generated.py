"""Generated tasks: the same questions each time, answered right only if they are written whole."""

from pathlib import Path

import pytest

from pruning.evaluation.generated import (
    GENERATED_TASKS,
    NUM_AVAILABLE,
    answer_generated,
    generated_items,
)
from pruning.evaluation.probe_run import answer
from pruning.evaluation.task_errors import ZeroShotUnavailable
from pruning.evaluation.task_sources import TaskSources
from pruning.models.forward import InMemoryForward
from pruning.models.store import LoadedModel
from pruning.spec import InvalidSpec


@pytest.mark.parametrize("task", GENERATED_TASKS)
def test_more_questions_begin_with_the_same_ones(task: str) -> None:
    items = generated_items(task, 40)
    assert generated_items(task, 12) == items[:12]
    assert len({item.prompt for item in items}) == 40
    assert all(item.answer.startswith(" ") and item.answer.endswith("\n") for item in items)
    solved = [line for line in items[0].prompt.split("\n") if line]
    assert len(solved) >= 4, "three solved ones stand in front of it"


def test_closing_brackets_and_keys_are_what_they_say() -> None:
    closing = {"(": ")", "[": "]", "{": "}", "<": ">"}
    for item in generated_items("gen_brackets", 20):
        opened = item.prompt.rpartition("open: ")[2].partition("\n")[0].split()
        assert item.answer.split() == [closing[bracket] for bracket in reversed(opened)]
    for item in generated_items("gen_key", 20):
        assert item.prompt.rpartition("key: ")[0].count(item.answer.strip()) == 0
        assert f"key: {item.answer.strip()}\n" in item.prompt


def test_answers_are_right_if_greedy_decoding_writes_them(tiny_loaded: LoadedModel) -> None:
    forward = InMemoryForward(tiny_loaded.model)
    names = ("gen_key", "gen_brackets")
    answered = answer_generated(forward, tiny_loaded.tokenizer, names, 6)
    for name, each in zip(names, answered, strict=True):
        written = answer(forward, tiny_loaded.tokenizer, generated_items(name, 6))
        assert each.answers is not None
        assert each.answers.right == tuple(one.is_written for one in written)
        assert (each.answers.chance, each.answers.num_available) == (0, NUM_AVAILABLE)
        assert (each.score.num_samples, each.score.metric) == (6, "exact_match")


def test_tasks_are_found_in_their_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = TaskSources(tmp_path)
    with pytest.raises(InvalidSpec, match=r"unknown tasks: arc\.\./x\. Expected .*gen_key.*piqa"):
        sources.check(["gen_key", "arc../x"])
    monkeypatch.setattr("pruning.extras.find_spec", lambda _name: None)
    sources.check(["gen_key"])
    with pytest.raises(ZeroShotUnavailable):
        sources.check(["gen_key", "piqa"])
