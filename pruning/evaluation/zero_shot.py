"""Zero-shot accuracy: tasks of lm-eval on a model in memory or on a pruned view of it.

Needs the extra ``eval``. The paper (arXiv 2402.09025) reports the mean accuracy of five tasks
without examples, length-normalised for tasks that define it.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pruning.evaluation.paired_tasks import Answers
from pruning.evaluation.results import TaskScore
from pruning.evaluation.task_errors import TaskUnusable, require_lm_eval
from pruning.models.blocks import num_blocks, view

_PREFERRED = ("acc_norm", "acc")


def check_tasks(tasks: Sequence[str], tasks_dir: Path | None = None) -> None:
    """Raise ``ZeroShotUnavailable``, or ``TaskUnusable`` for a name that is no task."""
    require_lm_eval()
    _task_manager(tasks, tasks_dir)


def fetch_tasks(tasks: Sequence[str], tasks_dir: Path | None = None) -> Any:  # noqa: ANN401 - an extra
    """Download the data of ``tasks``, and return lm-eval's manager of them.

    Raises ``ZeroShotUnavailable`` or ``TaskUnusable``.
    """
    require_lm_eval()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _task_manager(tasks, tasks_dir)
    try:
        manager.load(list(tasks))
    except Exception as error:  # a dozen classes, from DNS to a wrong YAML file
        raise TaskUnusable(
            f"cannot load the data of {', '.join(tasks)}: {type(error).__name__}: {error}. "
            "Without a network, use custom tasks with --tasks-dir"
        ) from error
    return manager


@dataclass(frozen=True)
class AnsweredTask:
    """The result of one task. ``answers`` is None if its metric is no accuracy."""

    score: TaskScore
    answers: Answers | None


def answer_tasks(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[str],
    *,
    tasks_dir: Path | None = None,
    limit: int | None = None,
    observe: Callable[[int, int], object] = lambda _done, _total: None,
) -> list[AnsweredTask]:
    """Evaluate tasks of lm-eval, or of the YAML files under ``tasks_dir``.

    ``limit`` is the number of samples for each task, all by default. Calls ``observe(done, total)``
    with numbers of scored answers. Raises ``ZeroShotUnavailable`` or ``TaskUnusable``.
    """
    manager = fetch_tasks(tasks, tasks_dir)
    from lm_eval import simple_evaluate  # noqa: PLC0415 - an extra, and slow to import

    from pruning.evaluation.log_likelihoods import SharedContexts  # noqa: PLC0415 - as above

    with redirect_stdout(sys.stderr):  # it prints there what it does
        evaluated = simple_evaluate(
            SharedContexts(_detached(model), tokenizer, observe),
            tasks=list(tasks),
            task_manager=manager,
            limit=limit,
            log_samples=True,
        )
    assert evaluated is not None  # only on other ranks of a distributed run
    scores = [_score(name, evaluated) for name in evaluated["results"]]
    return [AnsweredTask(score, _answers(score, evaluated)) for score in scores]


def _answers(score: TaskScore, evaluated: Mapping[str, Any]) -> Answers | None:
    samples = evaluated["samples"].get(score.task, ())  # none of a group of tasks
    if score.metric not in _PREFERRED or not samples:
        return None
    of_filter = [one for one in samples if one["filter"] == samples[0]["filter"]]
    by_place = sorted(of_filter, key=lambda one: one["doc_id"])
    return Answers(
        score.task,
        tuple(bool(one[score.metric]) for one in by_place),
        chance=fmean(map(_chance, by_place)),
        num_available=evaluated["n-samples"][score.task]["original"],
        metric=score.metric,
    )


def _chance(sample: Mapping[str, Any]) -> float:
    """That of a choice among the answers that were scored; 0 if there is one answer."""
    scored = len(sample["arguments"])
    if "acc_mutual_info" in sample["metrics"]:  # which scores each a second time
        scored //= 2
    return 1 / scored if scored > 1 else 0.0


def _detached(model: PreTrainedModel) -> PreTrainedModel:
    """Return a view of all blocks whose weights lm-eval cannot tie.

    Tying would change a model whose input and output embeddings differ.
    """
    whole = view(model, range(num_blocks(model)))
    whole.__dict__["tie_weights"] = lambda *_args, **_kwargs: None
    return whole


def _task_manager(tasks: Sequence[str], tasks_dir: Path | None) -> Any:  # noqa: ANN401 - an extra
    """Index the folder, and lm-eval's own thousands of files only if a task is not in it."""
    from lm_eval.tasks import TaskManager  # noqa: PLC0415 - as above

    folder = None if tasks_dir is None else str(tasks_dir)
    if folder is not None:
        local = TaskManager(include_path=folder, include_defaults=False)
        if set(tasks) <= set(local.all_tasks):
            return local
    manager = TaskManager(include_path=folder)
    if unknown := sorted(set(tasks) - set(manager.all_tasks)):
        raise TaskUnusable(
            f"unknown tasks: {', '.join(unknown)}; run `lm-eval ls tasks` to list lm-eval's "
            "tasks, or add your own with --tasks-dir. Other tasks are probe, json, "
            "zeroshot and ppl:TEXT"
        )
    return manager


def _score(name: str, evaluated: Mapping[str, Any]) -> TaskScore:
    """Read keys like ``acc,none``: a metric, and a filter of which the first counts."""
    values: dict[str, float] = {}
    for key, value in evaluated["results"][name].items():
        metric, _, filtered_by = key.partition(",")
        if filtered_by and isinstance(value, (int, float)):
            values.setdefault(metric, float(value))
    metrics = {name: value for name, value in values.items() if not name.endswith("_stderr")}
    metric = next((name for name in _PREFERRED if name in metrics), next(iter(metrics)))
    return TaskScore(
        task=name,
        metric=metric,
        value=metrics[metric],
        standard_error=values.get(f"{metric}_stderr"),
        num_samples=evaluated["n-samples"].get(name, {}).get("effective", 0),
        num_shots=evaluated["n-shot"].get(name, 0),
        metrics=metrics,
    )
