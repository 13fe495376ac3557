"""``sleb eval``: perplexity, the probe and tasks of lm-eval, on any models side by side.

What ``sleb eval`` has found, as a table with a column for each model, and the same as JSON.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from app.commands.prune import search_progress
from app.commands.subject import NotEvaluable, Subject, subject_of
from app.terminal import print_json
from pruning.config import Settings
from pruning.data.texts import text_windows
from pruning.evaluation.perplexity import Perplexity, measure_perplexity
from pruning.evaluation.probe import digest, probe_items
from pruning.evaluation.probe_run import answer
from pruning.evaluation.probe_scores import ProbeScore, summary
from pruning.evaluation.zero_shot import (
    PAPER_TASKS,
    TaskScore,
    mean_accuracy,
    require_lm_eval,
    score_tasks,
)
from pruning.models.blocks import num_blocks
from pruning.models.forward import Forward
from pruning.models.quantize import require_torchao
from pruning.models.store import set_up_torch
from pruning.search.dense_model import DenseModel, Resources, fitting_resident, load_dense_model
from pruning.sleb import Blocks
from pruning.spec.prune import Quantize, Resident

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


_TEXT = "ppl:"
_PROBE = "probe"
_PAPER = "zeroshot"


class InvalidTasks(ValueError):
    """The list of tasks cannot be meant."""


@dataclass(frozen=True)
class Tasks:
    """What to measure: perplexity on ``texts``, the probe, and ``zero_shot`` tasks of lm-eval."""

    texts: tuple[str, ...]
    has_probe: bool
    zero_shot: tuple[str, ...]
    seqlen: int = 2048
    num_windows: int | None = None
    tasks_dir: Path | None = None
    limit: int | None = None

    @classmethod
    def parse(cls, names: Sequence[str]) -> "Tasks":
        """Of ppl:TEXT, probe, zeroshot and names of lm-eval. Raises ``InvalidTasks``."""
        given = [name.strip() for name in names if name.strip()]
        texts = [name.removeprefix(_TEXT) for name in given if name.startswith(_TEXT)]
        if not given or "" in texts:
            raise InvalidTasks(
                f"tasks={','.join(names)!r}: expected ppl:TEXT, probe, zeroshot or names of lm-eval"
            )
        others = (name for name in given if name != _PROBE and not name.startswith(_TEXT))
        zero_shot = [t for name in others for t in (PAPER_TASKS if name == _PAPER else (name,))]
        return cls(tuple(dict.fromkeys(texts)), _PROBE in given, tuple(dict.fromkeys(zero_shot)))


@dataclass(frozen=True)
class Options:
    dtype: str = "auto"
    resident: Resident | None = None  # None: in memory if it fits, else streamed
    texts_dir: Path | None = None  # None: the one of the data directory
    quantize: Quantize | None = None  # each model with such weights as well


def run_evaluation(
    names: Sequence[str],
    tasks: Tasks,
    options: Options,
    settings: Settings,
    *,
    as_json: bool,
    out: Path | None,
) -> None:
    """Evaluate each model, weights that several share read once, and print or write the results."""
    if tasks.zero_shot:
        require_lm_eval()
    set_up_torch(settings.threads)
    if options.quantize is not None:
        require_torchao()
    columns = _columns([subject_of(name, settings) for name in names], options.quantize)
    with search_progress(Console(stderr=True)) as progress:
        found = dict(_evaluated(columns, tasks, options, settings, progress))
    print_evaluations([found[column] for column in columns], as_json=as_json, out=out)


@dataclass(frozen=True)
class _Column:
    subject: Subject
    weights: Quantize | None = None  # None for those of the checkpoint


def _columns(subjects: Sequence[Subject], quantize: Quantize | None) -> list[_Column]:
    """With ``quantize`` also each of them quantised, and dense parents that nobody named."""
    columns = [_Column(subject) for subject in subjects]
    if quantize is None:
        return columns
    named = {subject.path for subject in subjects if subject.keep is None}
    parents = dict.fromkeys(subject.path for subject in subjects if subject.path not in named)
    in_front = [_Column(Subject(path.name, path, None, ())) for path in parents]
    quantised = [_Column(subject, quantize) for subject in subjects]
    pairs = zip(columns, quantised, strict=True)
    return [*in_front, *(column for pair in pairs for column in pair)]


def _evaluated(
    columns: Sequence[_Column],
    tasks: Tasks,
    options: Options,
    settings: Settings,
    progress: Progress,
) -> Iterator[tuple[_Column, Evaluation]]:
    resources = Resources(settings.device, settings.state_budget)
    texts_dir = options.texts_dir or settings.data_dir / "texts"
    for path in dict.fromkeys(column.subject.path for column in columns):
        resident = options.resident or fitting_resident(path, resources)
        if resident is Resident.STREAM and (tasks.zero_shot or options.quantize):
            raise NotEvaluable(
                f"{path} does not fit into memory or is to be streamed, and tasks of lm-eval and "
                "quantised weights need the whole model there: leave them out, or say --resident "
                "model"
            )
        loading = progress.add_task("load", total=None)
        dense = load_dense_model(path, resident, resources, dtype=options.dtype)
        progress.remove_task(loading)
        for column in (its for its in columns if its.subject.path == path):
            yield column, _Run(column, dense, tasks, texts_dir, progress).evaluation()


@dataclass(frozen=True)
class _Run:
    """One model, loaded, and what is to be measured of it."""

    column: _Column
    dense: DenseModel
    tasks: Tasks
    texts_dir: Path
    progress: Progress

    def evaluation(self) -> Evaluation:
        subject, weights = self.column.subject, self.column.weights
        scores = self._zero_shot()
        return Evaluation(
            model=subject.name,
            weights=None if weights is None else weights.value,
            num_blocks=len(self._keep),
            removed_blocks=subject.removed_blocks,
            dtype=str(self.dense.model.dtype).removeprefix("torch."),
            perplexities=tuple(self._perplexity(text) for text in self.tasks.texts),
            probe=self._probe() if self.tasks.has_probe else None,
            tasks=tuple(scores),
            zero_shot_mean=mean_accuracy(scores),
        )

    @property
    def _keep(self) -> Blocks:
        keep = self.column.subject.keep
        return tuple(range(num_blocks(self.dense.model))) if keep is None else keep

    @cached_property
    def _forward(self) -> Forward:
        return self.dense.forward(self._keep, self.column.weights)

    def _perplexity(self, text: str) -> Perplexity:
        windows = text_windows(
            text,
            self.texts_dir,
            self.dense.model,
            self.dense.tokenizer,
            seqlen=self.tasks.seqlen,
            num_windows=self.tasks.num_windows,
        )
        with self._observed(f"ppl:{text}") as observe:
            return measure_perplexity(self._forward, windows, observe=observe)

    def _probe(self) -> ProbeScore:
        items = probe_items()
        with self._observed("probe") as observe:
            answers = answer(self._forward, self.dense.tokenizer, items, observe=observe)
        return summary(answers, digest(items))

    def _zero_shot(self) -> list[TaskScore]:
        if not self.tasks.zero_shot:
            return []
        with self._observed(", ".join(self.tasks.zero_shot)):
            return score_tasks(
                self._forward.model,
                self.dense.tokenizer,
                self.tasks.zero_shot,
                tasks_dir=self.tasks.tasks_dir,
                limit=self.tasks.limit,
            )

    @contextmanager
    def _observed(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A bar while it is measured."""
        bar = self.progress.add_task(f"{self.column.subject.name}  {what}", total=None)

        def observe(done: int, total: int) -> None:
            self.progress.update(bar, completed=done, total=total)

        yield observe
        self.progress.stop_task(bar)
