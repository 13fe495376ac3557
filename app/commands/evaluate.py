"""``sleb eval``: measure perplexity, the probe and tasks of lm-eval on several models.

The results are a table with a column for each model, and the same as JSON.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
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
from pruning.config import WorkerSettings
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

_TEXT = "ppl:"
_PROBE = "probe"
_PAPER = "zeroshot"
_NONE = "-"


class InvalidTasks(ValueError):
    """The list of tasks is empty or malformed."""


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
        """Parse ppl:TEXT, probe, zeroshot and names of lm-eval. Raises ``InvalidTasks``."""
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
    resident: Resident | None = None  # None: stream if it does not fit into memory
    texts_dir: Path | None = None  # None: texts in the data directory
    quantize: Quantize | None = None  # measures each model with such weights too


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


def run_evaluation(
    names: Sequence[str],
    tasks: Tasks,
    options: Options,
    settings: WorkerSettings,
    *,
    as_json: bool,
    out: Path | None,
) -> None:
    """Evaluate each model and report the results. Shared weights are read once."""
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
    """A column for each model; with ``quantize``, also quantised ones and missing dense parents."""
    columns = [_Column(subject) for subject in subjects]
    if quantize is None:
        return columns
    named = {subject.path for subject in subjects if subject.keep is None}
    parents = dict.fromkeys(subject.path for subject in subjects if subject.path not in named)
    dense = [_Column(Subject(path.name, path, None, ())) for path in parents]
    quantised = [_Column(subject, quantize) for subject in subjects]
    pairs = zip(columns, quantised, strict=True)
    return [*dense, *(column for pair in pairs for column in pair)]


def _evaluated(
    columns: Sequence[_Column],
    tasks: Tasks,
    options: Options,
    settings: WorkerSettings,
    progress: Progress,
) -> Iterator[tuple[_Column, Evaluation]]:
    resources = replace(Resources.of(settings), num_actors=0)  # no search
    texts_dir = options.texts_dir or settings.data_dir / "texts"
    for path in dict.fromkeys(column.subject.path for column in columns):
        resident = options.resident or fitting_resident(path, resources)
        if resident is Resident.STREAM and (tasks.zero_shot or options.quantize):
            raise NotEvaluable(
                f"{path} is streamed, and tasks of lm-eval and quantised weights need the whole "
                "model in memory: leave them out, or use --resident model"
            )
        loading = progress.add_task("load", total=None)
        dense = load_dense_model(path, resident, resources, dtype=options.dtype)
        progress.remove_task(loading)
        for column in [one for one in columns if one.subject.path == path]:
            yield column, _ModelEvaluation(column, dense, tasks, texts_dir, progress).run()


@dataclass(frozen=True)
class _ModelEvaluation:
    """A loaded model, and the tasks to measure."""

    column: _Column
    dense: DenseModel
    tasks: Tasks
    texts_dir: Path
    progress: Progress

    def run(self) -> Evaluation:
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
        own = self.column.subject.own_tensors(self.dense)
        return self.dense.forward(self._keep, self.column.weights, own)

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
        """Show a progress bar during a measurement."""
        bar = self.progress.add_task(f"{self.column.subject.name}  {what}", total=None)

        def observe(done: int, total: int) -> None:
            self.progress.update(bar, completed=done, total=total)

        yield observe
        self.progress.stop_task(bar)


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
    """Pairs of a row's label, which is the same for all models, and the cell."""
    yield "blocks", str(evaluation.num_blocks)
    yield "removed blocks", " ".join(map(str, evaluation.removed_blocks)) or "none"
    yield "dtype", evaluation.dtype
    if evaluation.weights is not None:
        yield "weights of the blocks", evaluation.weights
    for found in evaluation.perplexities:
        windows = f"windows of {found.seqlen}"
        yield f"perplexity, {found.text}, {windows}", f"{found.perplexity:.4f}"
        yield f"  nats per token, {found.text}", f"{found.loss:.6f}"
        yield f"  number of windows, {found.text}", str(found.num_windows)
        yield f"  token ids, {found.text}", found.digest[:12]
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
    """A sentence for each kind of number in the table."""
    if any(evaluation.perplexities for evaluation in evaluations):
        yield "perplexity: over windows that do not overlap; comparable if the token ids agree."
    if any(evaluation.probe for evaluation in evaluations):
        yield "probe: 0 to 1, the mean share of right answers, chosen among four and written."
    if any(evaluation.tasks for evaluation in evaluations):
        yield "tasks of lm-eval: ± one standard error."
    if any(evaluation.zero_shot_mean is not None for evaluation in evaluations):
        yield "zero-shot mean: over the paper's five tasks, by acc_norm if they have it, else acc."
