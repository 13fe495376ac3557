"""The results of ``sleb eval``: as data, as a table with a column for each model, and as JSON."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.terminal import print_json
from pruning.evaluation.perplexity import Perplexity
from pruning.evaluation.probe_scores import ProbeScore
from pruning.evaluation.quality import CONFIDENCE, Interval, text_of
from pruning.evaluation.zero_shot import TaskScore
from pruning.sleb import Blocks

_NONE = "-"
_Cell = tuple[str, str]  # the label of its row, which is the same for all models, and the text
_Row = tuple[str, Sequence[str]]  # its label, and a cell for each model


@dataclass(frozen=True)
class Evaluation:
    """The results of one model. A measurement that was not requested is empty or None."""

    model: str
    num_blocks: int
    removed_blocks: Blocks
    dtype: str
    weights: str | None  # int8 or int4, if they were quantised
    perplexities: tuple[Perplexity, ...]
    probe: ProbeScore | None
    tasks: tuple[TaskScore, ...]
    zero_shot_mean: float | None  # over the paper's five tasks


def print_evaluations(
    evaluations: Sequence[Evaluation], *, as_json: bool, out: Path | None
) -> None:
    """Print the results, and write them as JSON into the file ``out`` too."""
    report = _report(evaluations)
    if out is not None:
        out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(report)
        return
    table = Table()
    table.add_column("")
    for evaluation in evaluations:
        table.add_column(escape(evaluation.model), justify="right", overflow="fold")
    for label, cells in chain(
        _merged(map(_model_rows, evaluations)),
        _text_rows(evaluations),
        _merged(map(_task_rows, evaluations)),
    ):
        table.add_row(escape(label), *map(escape, cells))
    console = Console(highlight=False)
    console.print(table)
    for text in _legend(evaluations):
        console.print(text, markup=False, soft_wrap=True)


def _report(evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    return {
        "evaluations": [asdict(evaluation) for evaluation in evaluations],
        "versions": {name: version(name) for name in ("sleb-serve", "torch", "transformers")},
    }


def _merged(columns: Iterable[Iterable[_Cell]]) -> Iterator[_Row]:
    """Rows with a cell for each column, from the labelled cells of each column."""
    found = [dict(column) for column in columns]
    for label in dict.fromkeys(label for column in found for label in column):
        yield label, [column.get(label, _NONE) for column in found]


def _model_rows(evaluation: Evaluation) -> Iterator[_Cell]:
    yield "blocks", str(evaluation.num_blocks)
    yield "removed blocks", " ".join(map(str, evaluation.removed_blocks)) or "none"
    yield "dtype", evaluation.dtype
    if evaluation.weights is not None:
        yield "weights of the blocks", evaluation.weights


def _text_rows(evaluations: Sequence[Evaluation]) -> Iterator[_Row]:
    """Rows for each text. Models with other token ids of the same text have rows of their own."""
    columns = [{found.digest: found for found in each.perplexities} for each in evaluations]
    for digest, text in {key: found for column in columns for key, found in column.items()}.items():
        windows = text_of(text.text, text.num_windows, text.seqlen)
        yield f"{windows}, token ids {digest[:12]}", [""] * len(columns)
        yield from _merged(_perplexity_rows(column.get(digest)) for column in columns)


def _perplexity_rows(found: Perplexity | None) -> Iterator[_Cell]:
    if found is None:
        return
    yield "  perplexity", f"{found.perplexity:.4f}"
    yield "  its interval", _range(found.interval)
    if found.ratio is not None:
        yield "  × dense", f"{found.ratio.value:.4f}"
        yield "  × dense, its interval", _range(found.ratio)
    yield "  nats per token", f"{found.loss:.6f}"


def _task_rows(evaluation: Evaluation) -> Iterator[_Cell]:
    yield from _probe_rows(evaluation.probe)
    for task in evaluation.tasks:
        yield from _score_rows(task)
    if evaluation.zero_shot_mean is not None:
        yield "zero-shot mean", f"{evaluation.zero_shot_mean:.4f}"


def _probe_rows(probe: ProbeScore | None) -> Iterator[_Cell]:
    if probe is None:
        return
    yield "probe", _with_error(probe.score, probe.standard_error)
    for kind in probe.kinds:
        yield f"  {kind.kind}", _with_error(kind.score, kind.standard_error)
        yield f"  {kind.kind}: chosen", f"{kind.chosen:.4f}"
        yield f"  {kind.kind}: written", f"{kind.written:.4f}"
    yield "  questions of each kind", " ".join(str(kind.num_items) for kind in probe.kinds)
    yield "  questions", probe.digest[:12]


def _score_rows(task: TaskScore) -> Iterator[_Cell]:
    yield f"{task.task}, {task.metric}", _with_error(task.value, task.standard_error)
    for metric, value in task.metrics.items():
        if metric != task.metric:
            yield f"  {task.task}, {metric}", f"{value:.4f}"
    yield f"  {task.task}: samples, examples in front", f"{task.num_samples}, {task.num_shots}"


def _range(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return _NONE
    return f"{interval.low:.4f} to {interval.high:.4f}"


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _legend(evaluations: Sequence[Evaluation]) -> Iterator[str]:
    """A sentence for each kind of number in the table."""
    if any(evaluation.perplexities for evaluation in evaluations):
        yield (
            "perplexity: over windows that do not overlap; those of one row have the same windows "
            "and can be compared."
        )
        yield (
            f"intervals: {CONFIDENCE:.0%}, by Student's t over windows; those of × dense from "
            "differences to the dense model on the same windows."
        )
    if any(evaluation.probe for evaluation in evaluations):
        yield "probe: 0 to 1, the mean share of right answers, chosen among four and written."
    if any(evaluation.tasks for evaluation in evaluations):
        yield "tasks of lm-eval: ± one standard error."
    if any(evaluation.zero_shot_mean is not None for evaluation in evaluations):
        yield "zero-shot mean: over the paper's five tasks, by acc_norm if they have it, else acc."
