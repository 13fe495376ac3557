"""Local files as the data of lm-eval's own tasks: its prompts and targets, and no network."""

import json
from pathlib import Path
from typing import Any

import pytest

from pruning.evaluation.task_data import TASKS_WITH_FILES, task_folder, tasks_in
from pruning.evaluation.task_errors import TaskUnusable
from pruning.evaluation.zero_shot import fetch_tasks
from tests.support.task_files import LINES, write_task_files


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def loaded(folder: Path, *tasks: str) -> dict[str, Any]:
    """lm-eval's tasks of these names, with their data."""
    with task_folder(folder, tasks) as tasks_dir:
        found: dict[str, Any] = fetch_tasks(tasks, tasks_dir).load(list(tasks))["tasks"]
    return found


def test_lm_evals_own_prompts_choices_and_targets_are_used(tmp_path: Path) -> None:
    folder = write_task_files(tmp_path)
    assert tasks_in(folder) == TASKS_WITH_FILES
    tasks = loaded(folder, *TASKS_WITH_FILES)
    asked = {}
    for name, task in tasks.items():
        [*documents] = task.eval_docs
        assert len(documents) == len(LINES["openbook_qa" if name == "openbookqa" else name])
        asked[name] = [task.doc_to_text(documents[1]), task.doc_to_target(documents[1])]
        if task.OUTPUT_TYPE == "multiple_choice":
            asked[name].append(task.doc_to_choice(documents[1]))
    easy, hard = LINES["arc_easy"][1], LINES["arc_challenge"][1]
    question = "Question: which animal does the brown dog see?\nAnswer:"
    assert asked == {
        "arc_easy": [question, 1, easy["choices"]],
        "arc_challenge": [f"{hard['query']}\nAnswer:", 0, hard["choices"]],
        "piqa": [question, 1, easy["choices"][:2]],
        "winogrande": [1, "was quick.", LINES["winogrande"][1]["context_options"]],
        "lambada_openai": ["The dog jumps over\nthe brown", " fox"],
        "openbookqa": ["The quick dog sees", 1, easy["choices"]],
    }
    assert [metric["metric"] for metric in tasks["arc_easy"].config.metric_list] == [
        "acc",
        "acc_norm",
    ]


def test_lines_with_lm_evals_own_columns_are_taken_as_they_are(tmp_path: Path) -> None:
    line = {"goal": "see a dog", "sol1": "look", "sol2": "sleep", "label": 0, "more": [1]}
    (tmp_path / "piqa.jsonl").write_text(json.dumps(line) + "\n\n")
    [document] = loaded(tmp_path, "piqa")["piqa"].eval_docs
    assert document == {name: line[name] for name in ("goal", "sol1", "sol2", "label")}


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    with task_folder(write_task_files(tmp_path, "piqa"), ["piqa"]) as tasks_dir:
        assert (tasks_dir / "piqa.yaml").is_file()
    assert not tasks_dir.exists()


GOOD = {"query": "see a dog", "choices": ["look", "sleep"], "gold": 1}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            {"query": "see", "choices": ["a", "b"]},
            "line 2 of .*piqa.jsonl: it lacks the field 'gold'",
        ),
        ({**GOOD, "gold": 2}, "line 2 of .*gold=2 is not the number of one of 2 choices"),
        ({**GOOD, "gold": "B"}, "line 2 of .*gold='B': expected the number"),
        ({**GOOD, "choices": ["look"]}, "line 2 of .*choices: expected 2, got 1"),
        ({**GOOD, "choices": "look"}, "line 2 of .*choices: expected a list of texts"),
        ({**GOOD, "query": 7}, "line 2 of .*query: expected a text"),
        ([GOOD], "line 2 of .*it is not a JSON object"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, said: str) -> None:
    (tmp_path / "piqa.jsonl").write_text(f"{json.dumps(GOOD)}\n{json.dumps(line)}\n")
    with pytest.raises(TaskUnusable, match=said), task_folder(tmp_path, ["piqa"]):
        pass


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskUnusable, match="none: there is no such directory"):
        tasks_in(tmp_path / "none")
    with pytest.raises(TaskUnusable, match=r"has none of the files arc_easy\.jsonl"):
        tasks_in(tmp_path)
    write_task_files(tmp_path, "piqa")
    for task, said in (
        ("winogrande", r"has no file winogrande\.jsonl"),
        ("boolq", "cannot be used with the task boolq"),
    ):
        with pytest.raises(TaskUnusable, match=said), task_folder(tmp_path, ["piqa", task]):
            pass
    (tmp_path / "piqa.jsonl").write_text("\n")
    with pytest.raises(TaskUnusable, match="has no questions"), task_folder(tmp_path, ["piqa"]):
        pass
    (tmp_path / "piqa.jsonl").write_text("{")
    with pytest.raises(TaskUnusable, match="line 1 of"), task_folder(tmp_path, ["piqa"]):
        pass
