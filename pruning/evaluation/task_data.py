"""Questions of zero-shot tasks in local files, as data of lm-eval's own tasks: no network.

Needs the extra ``eval``. A file has one question a line: the columns that lm-eval's definition of
the task reads, or the fields of llm-foundry's local data, which are converted to them.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import ascii_uppercase
from tempfile import TemporaryDirectory
from typing import Any

from pruning.evaluation.task_errors import TaskUnusable, require_lm_eval

_Fields = Mapping[str, Any]
_QUESTION = "Question: "  # lm-eval's prompts begin with it, and so do the queries of llm-foundry
_CHOICES = ("query", "choices", "gold")
_ALIASES = {"openbookqa": ("openbookqa", "openbook_qa")}
_DEFINITION = """\
include: {definition}
task: {task}
dataset_path: json
dataset_name: null
dataset_kwargs:
  cache_dir: {cache}
  data_files:
    {split}: {data}
training_split: null
validation_split: {validation}
test_split: {test}
"""


def _lettered(fields: _Fields, question: str) -> _Fields:
    """Choices with letters, and the letter of the right one."""
    letters = list(ascii_uppercase[: len(fields["choices"])])
    choices = {"text": fields["choices"], "label": letters}
    return {question: _query(fields), "choices": choices, "answerKey": letters[fields["gold"]]}


def _two_solutions(fields: _Fields) -> _Fields:
    first, second = fields["choices"]
    return {"goal": _query(fields), "sol1": first, "sol2": second, "label": fields["gold"]}


def _two_options(fields: _Fields) -> _Fields:
    """lm-eval puts an option in front of the text behind the gap; a context is such an option."""
    first, second = fields["context_options"]
    sentence = f"_ {fields['continuation'].strip()}"
    answer = str(1 + fields["gold"])
    return {"sentence": sentence, "option1": first, "option2": second, "answer": answer}


def _last_word(fields: _Fields) -> _Fields:
    return {"text": f"{fields['context']} {fields['continuation'].strip()}"}


def _query(fields: _Fields) -> str:
    query: str = fields["query"]
    return query.strip().removeprefix(_QUESTION)


@dataclass(frozen=True)
class _Source:
    """A task of lm-eval, and how the fields of llm-foundry become the columns that it reads."""

    definition: str  # its file in lm-eval's folder of tasks
    split: str  # which lm-eval evaluates
    columns: tuple[str, ...]
    fields: tuple[str, ...]
    convert: Callable[[_Fields], _Fields]
    num_choices: int | None = None  # None: any number from 2


def _arc(definition: str) -> _Source:
    columns = ("question", "choices", "answerKey")
    return _Source(definition, "test", columns, _CHOICES, lambda line: _lettered(line, "question"))


_SOURCES: Mapping[str, _Source] = {
    "arc_easy": _arc("arc/arc_easy.yaml"),
    "arc_challenge": _arc("arc/arc_challenge.yaml"),
    "piqa": _Source(
        "piqa/piqa.yaml",
        "validation",
        ("goal", "sol1", "sol2", "label"),
        _CHOICES,
        _two_solutions,
        num_choices=2,
    ),
    "winogrande": _Source(
        "winogrande/default.yaml",
        "validation",
        ("sentence", "option1", "option2", "answer"),
        ("context_options", "continuation", "gold"),
        _two_options,
        num_choices=2,
    ),
    "lambada_openai": _Source(
        "lambada/lambada_openai.yaml", "test", ("text",), ("context", "continuation"), _last_word
    ),
    "openbookqa": _Source(
        "openbookqa/openbookqa.yaml",
        "test",
        ("question_stem", "choices", "answerKey"),
        _CHOICES,
        lambda line: _lettered(line, "question_stem"),
    ),
}
TASKS_WITH_FILES = tuple(_SOURCES)


def files_in(data_dir: Path | None) -> tuple[str, ...]:
    """The tasks that have a file there; none without such a directory."""
    if data_dir is None:
        return ()
    return tuple(task for task in _SOURCES if _file(data_dir, task) is not None)


def tasks_in(data_dir: Path) -> tuple[str, ...]:
    """The tasks that have a file in the directory. Raises ``TaskUnusable`` if there are none."""
    if not data_dir.is_dir():
        raise TaskUnusable(f"--task-data {data_dir}: there is no such directory")
    found = files_in(data_dir)
    if not found:
        names = ", ".join(f"{task}.jsonl" for task in _SOURCES)
        raise TaskUnusable(f"--task-data {data_dir}: it has none of the files {names}")
    return found


@contextmanager
def task_folder(data_dir: Path, tasks: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary directory with definitions of the tasks that read these files.

    Each includes lm-eval's own definition, and replaces its data. Raises ``ZeroShotUnavailable`` or
    ``TaskUnusable``.
    """
    require_lm_eval()
    found = tasks_in(data_dir)
    for task in tasks:
        if task not in _SOURCES:
            raise TaskUnusable(
                f"--task-data cannot be used with the task {task}: it has data for "
                f"{', '.join(_SOURCES)}. Leave it out, or give your own task with --tasks-dir"
            )
        if task not in found:
            raise TaskUnusable(f"--task-data {data_dir}: it has no file {task}.jsonl")
    with TemporaryDirectory(prefix="sleb-tasks-") as temporary:
        for task in tasks:
            _write(task, data_dir, Path(temporary))
        yield Path(temporary)


def _file(data_dir: Path, task: str) -> Path | None:
    paths = [data_dir / f"{name}.jsonl" for name in _ALIASES.get(task, (task,))]
    return next((path for path in paths if path.is_file()), None)


def _write(task: str, data_dir: Path, folder: Path) -> None:
    source, file = _SOURCES[task], _file(data_dir, task)
    assert file is not None
    data = folder / f"{task}.jsonl"
    with data.open("w", encoding="utf-8") as converted:
        for line in _converted(file, source):
            converted.write(json.dumps(line) + "\n")
    splits = {"validation": "null", "test": "null", source.split: source.split}
    text = _DEFINITION.format(
        definition=json.dumps(str(_lm_eval_tasks() / source.definition)),
        task=task,
        cache=json.dumps(str(folder / "cache")),
        split=source.split,
        data=json.dumps(str(data)),
        **splits,
    )
    (folder / f"{task}.yaml").write_text(text, encoding="utf-8")


def _lm_eval_tasks() -> Path:
    spec = find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "tasks"


def _converted(file: Path, source: _Source) -> Iterator[_Fields]:
    """The columns of each line. Raises ``TaskUnusable`` with the number of a wrong line."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeError) as error:
        raise TaskUnusable(f"cannot read {file}: {error}") from error
    is_empty = True
    for number, text in enumerate(lines, start=1):
        if text.strip():
            is_empty = False
            try:
                yield _columns(json.loads(text), source)
            except ValueError as error:
                raise TaskUnusable(f"line {number} of {file}: {error}") from error
    if is_empty:
        raise TaskUnusable(f"{file} has no questions")


def _columns(line: object, source: _Source) -> _Fields:
    """The columns that lm-eval reads. Raises ``ValueError``."""
    if not isinstance(line, dict):
        raise ValueError("it is not a JSON object")
    if all(column in line for column in source.columns):
        return {column: line[column] for column in source.columns}
    for field in source.fields:
        if field not in line:
            raise ValueError(
                f"it lacks the field {field!r}. Expected {', '.join(source.fields)}, or lm-eval's "
                f"own columns {', '.join(source.columns)}"
            )
        _check(field, line[field], source.num_choices)
    gold: int = line.get("gold", 0)
    choices: list[str] = line.get("choices") or line.get("context_options") or ["any"]
    if gold >= len(choices):
        raise ValueError(f"gold={gold} is not the number of one of {len(choices)} choices")
    return source.convert(line)


def _check(field: str, value: object, num_choices: int | None) -> None:
    """Raise ``ValueError`` unless a field of llm-foundry has a value of its kind."""
    if field == "gold":
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"gold={value!r}: expected the number of the right choice, from 0")
    elif field in ("choices", "context_options"):
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise ValueError(f"{field}: expected a list of texts")
        if len(value) != num_choices if num_choices else not 2 <= len(value) <= _MAX_CHOICES:
            raise ValueError(f"{field}: expected {num_choices or 'two or more'}, got {len(value)}")
    elif not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field}: expected a text")


_MAX_CHOICES = len(ascii_uppercase)
