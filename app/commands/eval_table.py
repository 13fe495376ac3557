"""The results of ``sleb eval``: as data, as tables, and as JSON.

One table has a column for each model. Another one has a section for each text, which fits into 80
columns.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from string import ascii_uppercase

from rich.console import Console
from rich.table import Column, Table

from app.commands.domain_table import fits, print_sections
from app.terminal import filled, json_text, print_json
from pruning.checkpoints.domain_tables import INTERVALS, NARROW, text_line, too_few, with_interval
from pruning.checkpoints.trajectory import NONE, Cells
from pruning.evaluation.json_questions import JsonScore
from pruning.evaluation.quality import MIN_WINDOWS, Perplexity, text_of
from pruning.evaluation.results import ProbeScore, TaskScore
from pruning.evaluation.task_shares import TaskShares
from pruning.evaluation.verdict_table import with_reach
from pruning.models.names import VariantName
from pruning.sleb import Blocks

_Cell = tuple[str, str]  # the label of its row, which is the same for all models, and the text
_Row = tuple[str, Sequence[str]]  # its label, and a cell for each model
# A heading, and a measurement: all that are on the same windows are in its section. Models with
# other token ids of a text have another one.
_Section = tuple[str, Perplexity]


@dataclass(frozen=True)
class Evaluation:
    """The results of one model. A measurement that was not requested is empty or None."""

    model: str
    num_blocks: int
    removed_blocks: Blocks
    dtype: str
    weights: str | None  # int8 or int4, if they were quantized
    perplexities: tuple[Perplexity, ...]
    probe: ProbeScore | None
    valid_json: JsonScore | None  # also None for a model that is streamed or has few positions
    tasks: tuple[TaskScore, ...]
    zero_shot_mean: float | None  # over the paper's five tasks
    task_shares: TaskShares | None = None  # of the dense model, if that was measured too


def print_evaluations(
    evaluations: Sequence[Evaluation], texts: Sequence[str], *, as_json: bool, out: Path | None
) -> None:
    """Print the results, and write them as JSON into the file ``out`` too.

    ``texts`` are the names of those that perplexities were measured on.
    """
    report = {
        "evaluations": evaluations,
        "versions": {name: version(name) for name in ("sleb-serve", "torch", "transformers")},
    }
    if out is not None:
        out.write_text(json_text(report, indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(report)
        return
    console = Console(highlight=False)
    _print_models(console, evaluations)
    sections = _sections(evaluations, texts)
    if sections:
        text_rows = chain.from_iterable(_text_rows(evaluations, each) for each in sections)
        print_sections(console, "by text", NARROW[:-1], list(text_rows))
    for text in _legend(evaluations, sections):
        console.print(text, markup=False)


def _print_models(console: Console, evaluations: Sequence[Evaluation]) -> None:
    """Print a column for each model, with a letter in place of names that need more room."""
    names = [evaluation.model for evaluation in evaluations]
    rows = [*_merged(map(_model_rows, evaluations)), *_merged(map(_task_rows, evaluations))]
    table = _table([name.replace("@", "\n@") for name in names], rows)  # in two lines, three fit
    letters = ascii_uppercase[: len(names)]
    if fits(console, table) or len(letters) < len(names):
        console.print(table)
        return
    console.print(_table(letters, rows))
    for letter, name in zip(letters, names, strict=True):
        console.print(f"{letter}: {name}", markup=False, soft_wrap=True)


def _table(headings: Iterable[str], rows: Iterable[_Row]) -> Table:
    lines = ([label, *cells] for label, cells in rows)
    return filled(Table(Column("")), headings, lines, overflow="fold")


def _merged(columns: Iterable[Iterable[_Cell]]) -> Iterator[_Row]:
    """Rows with a cell for each column, from the labelled cells of each column."""
    merged = [dict(column) for column in columns]
    for label in dict.fromkeys(label for column in merged for label in column):
        yield label, [column.get(label, NONE) for column in merged]


def _model_rows(evaluation: Evaluation) -> Iterator[_Cell]:
    yield "blocks", str(evaluation.num_blocks)
    yield "removed blocks", " ".join(map(str, evaluation.removed_blocks)) or "none"
    yield "dtype", evaluation.dtype
    if evaluation.weights is not None:
        yield "weights of the blocks", evaluation.weights


def _sections(evaluations: Sequence[Evaluation], texts: Sequence[str]) -> Sequence[_Section]:
    sections: dict[str, _Section] = {}
    numbers = Counter[str]()
    for evaluation in evaluations:
        for text, measured in zip(texts, evaluation.perplexities, strict=True):
            if measured.digest not in sections:
                numbers[text] += 1
                heading = text if numbers[text] == 1 else f"{text} ({numbers[text]})"
                sections[measured.digest] = heading, measured
    return list(sections.values())


def _text_rows(evaluations: Sequence[Evaluation], section: _Section) -> Iterator[Cells]:
    heading, measured = section
    yield heading, NONE, NONE
    for evaluation in evaluations:
        for perplexity in evaluation.perplexities:
            if perplexity.digest == measured.digest:
                ratio = NONE if perplexity.ratio is None else with_interval(perplexity.ratio)
                yield f"  {_name(evaluation)}", with_interval(perplexity.interval), ratio


def _name(evaluation: Evaluation) -> str:
    weights = evaluation.weights
    is_named = weights is None or VariantName.parse(evaluation.model).is_int8
    return evaluation.model if is_named else f"{evaluation.model}, {weights}"


def _task_rows(evaluation: Evaluation) -> Iterator[_Cell]:
    if (probe := evaluation.probe) is not None:
        yield "probe", _with_error(probe.score, probe.standard_error)
        for kind in probe.kinds:
            yield f"  {kind.kind}", _with_error(kind.score, kind.standard_error)
            yield f"  {kind.kind}: multiple choice", f"{kind.chosen:.4f}"
            yield f"  {kind.kind}: generated", f"{kind.written:.4f}"
        yield "  questions per kind", " ".join(str(kind.num_items) for kind in probe.kinds)
        yield "  questions", probe.digest[:12]
    if (valid := evaluation.valid_json) is not None:
        yield "valid JSON", f"{valid.share:.4f}"
        yield "  95 % interval", f"{valid.low:.2f} to {valid.high:.2f}"
        yield "  valid / total", f"{valid.num_valid} / {valid.num_questions}"
    for task in evaluation.tasks:
        yield from _score_rows(task)
    if evaluation.zero_shot_mean is not None:
        yield "zero-shot mean", f"{evaluation.zero_shot_mean:.4f}"
    if (shares := evaluation.task_shares) is not None:
        yield "share of dense above chance", with_reach(shares.share)
        yield "  worst task", f"{shares.worst_task or NONE} {with_reach(shares.worst)}"


def _score_rows(task: TaskScore) -> Iterator[_Cell]:
    yield f"{task.task}, {task.metric}", _with_error(task.value, task.standard_error)
    for metric, value in task.metrics.items():
        if metric != task.metric:
            yield f"  {task.task}, {metric}", f"{value:.4f}"
    yield f"  {task.task}: samples, few-shot examples", f"{task.num_samples}, {task.num_shots}"


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _text_legend(sections: Sequence[_Section]) -> Iterator[str]:
    """Each text, and what its numbers mean."""
    for heading, measured in sections:
        windows = text_of(measured.text, measured.num_windows, measured.seqlen)
        yield text_line(heading, windows, measured.digest)
    if sections:
        yield (
            "perplexity: over non-overlapping windows; all models in a section use the "
            "same windows."
        )
    few = [heading for heading, measured in sections if measured.num_windows < MIN_WINDOWS]
    if len(few) < len(sections):
        yield INTERVALS
    if few:
        yield too_few(few)


def _legend(evaluations: Sequence[Evaluation], sections: Sequence[_Section]) -> Iterator[str]:
    """Each text, and a sentence for each kind of number in the tables."""
    yield from _text_legend(sections)
    if any(evaluation.probe for evaluation in evaluations):
        yield "probe: mean accuracy from 0 to 1, over multiple-choice and generated answers."
    if any(evaluation.valid_json for evaluation in evaluations):
        yield (
            "valid JSON: share of answers, from 0 to 1, that parse and match the schema; "
            "greedy decoding without response_format; Wilson interval."
        )
    if any(evaluation.tasks for evaluation in evaluations):
        yield "lm-eval tasks: ± one standard error."
    if any(evaluation.task_shares for evaluation in evaluations):
        yield (
            "share of dense above chance: of the mean accuracy less that of guesses, on the same "
            "questions; ± half of an interval of 95 %."
        )
    if any(evaluation.zero_shot_mean is not None for evaluation in evaluations):
        yield (
            "zero-shot mean: mean accuracy over the paper's five tasks; acc_norm where "
            "available, otherwise acc."
        )
