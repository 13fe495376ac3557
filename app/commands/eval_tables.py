"""What ``sleb eval`` has found, as a table with a column for each model, and the same as JSON."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.terminal import print_json
from pruning.evaluation.perplexity import Perplexity
from pruning.evaluation.probe_scores import ProbeScore
from pruning.evaluation.zero_shot import TaskScore
from pruning.sleb import Blocks

_NONE = "-"


@dataclass(frozen=True)
class Evaluation:
    """Of one model; what was not asked for is empty or None."""

    model: str
    num_blocks: int
    removed_blocks: Blocks
    dtype: str
    weights: str | None  # int8 or int4, if they were quantised for this
    perplexities: tuple[Perplexity, ...]
    probe: ProbeScore | None
    tasks: tuple[TaskScore, ...]
    zero_shot_mean: float | None  # over the paper's five tasks


def print_evaluations(
    evaluations: Sequence[Evaluation], *, as_json: bool, out: Path | None
) -> None:
    """To the terminal, and as JSON into the file ``out`` as well."""
    report = _report(evaluations)
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(report)
        return
    columns = [dict(_rows(evaluation)) for evaluation in evaluations]
    table = Table()
    table.add_column("")
    for evaluation in evaluations:
        table.add_column(escape(evaluation.model), justify="right", overflow="fold")
    for label in dict.fromkeys(label for column in columns for label in column):
        table.add_row(escape(label), *(escape(column.get(label, _NONE)) for column in columns))
    console = Console(highlight=False)
    console.print(table)
    for text in _legend(evaluations):
        console.print(text, markup=False, soft_wrap=True)


def _report(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    return {
        "evaluations": [asdict(evaluation) for evaluation in evaluations],
        "versions": {name: version(name) for name in ("sleb-serve", "torch", "transformers")},
    }


def _rows(evaluation: Evaluation) -> Iterator[tuple[str, str]]:
    """Labels, alike for all models, and cells."""
    yield "blocks", str(evaluation.num_blocks)
    yield "removed blocks", " ".join(map(str, evaluation.removed_blocks)) or "none"
    yield "dtype", evaluation.dtype
    if evaluation.weights is not None:
        yield "weights of the blocks", evaluation.weights
    for its in evaluation.perplexities:
        windows = f"windows of {its.seqlen}"
        yield f"perplexity, {its.text}, {windows}", f"{its.perplexity:.4f}"
        yield f"  nats per token, {its.text}", f"{its.loss:.6f}"
        yield f"  number of windows, {its.text}", str(its.num_windows)
        yield f"  token ids, {its.text}", its.digest[:12]
    yield from _probe_rows(evaluation.probe)
    for task in evaluation.tasks:
        yield from _task_rows(task)
    if evaluation.zero_shot_mean is not None:
        yield "zero-shot mean", f"{evaluation.zero_shot_mean:.4f}"


def _probe_rows(probe: ProbeScore | None) -> Iterator[tuple[str, str]]:
    if probe is None:
        return
    yield "probe", _with_error(probe.score, probe.standard_error)
    for kind in probe.kinds:
        yield f"  {kind.kind}", _with_error(kind.score, kind.standard_error)
        yield f"  {kind.kind}: chosen", f"{kind.chosen:.4f}"
        yield f"  {kind.kind}: written", f"{kind.written:.4f}"
    yield "  questions of each kind", " ".join(str(kind.num_items) for kind in probe.kinds)
    yield "  questions", probe.digest[:12]


def _task_rows(task: TaskScore) -> Iterator[tuple[str, str]]:
    yield f"{task.task}, {task.metric}", _with_error(task.value, task.standard_error)
    for metric, value in task.metrics.items():
        if metric != task.metric:
            yield f"  {task.task}, {metric}", f"{value:.4f}"
    yield f"  {task.task}: samples, examples in front", f"{task.num_samples}, {task.num_shots}"


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _legend(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """A sentence for each sort of number that is there."""
    if any(evaluation.perplexities for evaluation in evaluations):
        yield "perplexity: over windows that do not overlap; it compares where the token ids agree."
    if any(evaluation.probe for evaluation in evaluations):
        yield "probe: 0 to 1, the mean of two shares: right answers chosen among four, and written."
    if any(evaluation.tasks for evaluation in evaluations):
        yield "tasks of lm-eval: ± one standard error."
    if any(evaluation.zero_shot_mean is not None for evaluation in evaluations):
        yield "zero-shot mean: of the paper's five, by acc_norm where a task has it, else acc."
