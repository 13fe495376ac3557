"""``sleb eval``: measure perplexity, the probe, JSON and tasks of lm-eval on several models.

``eval_table`` shows the results.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from app.commands.eval_table import Evaluation, print_evaluations
from app.commands.json_answers import json_score
from app.commands.progress import search_progress
from app.commands.subject import NotEvaluable, Subject, subject_of
from app.models.measured_qualities import MeasuredQualities
from app.terminal import saying
from pruning.config import WorkerSettings
from pruning.data.texts import check_text_name, default_seqlen, text_windows
from pruning.evaluation.generated import GENERATED_TASKS, answer_generated
from pruning.evaluation.json_questions import JsonScore, json_questions
from pruning.evaluation.paired_tasks import Answers, PairedTask
from pruning.evaluation.perplexity import measure_perplexity
from pruning.evaluation.probe import digest, probe_items
from pruning.evaluation.probe_run import answer
from pruning.evaluation.quality import Perplexity
from pruning.evaluation.results import ProbeScore, mean_accuracy, summary
from pruning.evaluation.task_data import task_folder, tasks_in
from pruning.evaluation.task_shares import TaskShares
from pruning.evaluation.zero_shot import AnsweredTask, answer_tasks, check_tasks
from pruning.models.forward import Forward, InMemoryForward
from pruning.models.quantize import int8_form
from pruning.models.safetensors_headers import fingerprint
from pruning.models.store import set_up_torch
from pruning.search.dense_model import DenseModel, Resources, fitting_resident, load_dense_model
from pruning.sleb import Blocks
from pruning.spec.prune import Quantize, Resident
from pruning.spec.tasks import PAPER_TASKS

logger = logging.getLogger(__name__)

_TEXT = "ppl:"
_PROBE = "probe"
_JSON = "json"
_GROUPS = {"zeroshot": PAPER_TASKS, "slices": GENERATED_TASKS}
_DEFAULT = "probe,json,ppl:prose,ppl:code,ppl:documentation"


class InvalidTasks(ValueError):
    """The list of tasks is empty or malformed."""


@dataclass(frozen=True)
class Tasks:
    """What to measure: perplexity on ``texts``, the probe, the share of valid JSON,
    ``zero_shot`` tasks of lm-eval, and ``generated`` ones. And how.
    """

    texts: tuple[str, ...]
    has_probe: bool
    zero_shot: tuple[str, ...]
    has_json: bool = False
    generated: tuple[str, ...] = ()
    seqlen: int | None = None  # None: 2048, or all positions of a model that has fewer
    num_windows: int | None = None
    tasks_dir: Path | None = None  # has definitions of tasks
    task_data: Path | None = None  # has questions for tasks that lm-eval defines
    limit: int | None = None
    dtype: str = "auto"
    resident: Resident | None = None  # None: stream if it does not fit into memory
    texts_dir: Path | None = None  # None: texts in the data directory
    quantize: Quantize | None = None  # measures each model with such weights too

    @classmethod
    def parse_lists(cls, lists: Sequence[str] | None, task_data: Path | None) -> "Tasks":
        """Parse comma-separated names. None are the tasks in ``task_data``, or the default."""
        if lists is None:
            lists = [_DEFAULT] if task_data is None else tasks_in(task_data)
        return cls.parse([name for listed in lists for name in listed.split(",")])

    @classmethod
    def parse(cls, names: Sequence[str]) -> "Tasks":
        """Parse ppl:TEXT, probe, json, groups and names of tasks. Raises ``InvalidTasks``."""
        asked = [name.strip() for name in names if name.strip()]
        texts = [name.removeprefix(_TEXT) for name in asked if name.startswith(_TEXT)]
        if not asked or "" in texts:
            raise InvalidTasks(
                f"tasks={','.join(names)!r}: expected a comma-separated list of ppl:TEXT, "
                "probe, json, zeroshot, slices and tasks"
            )
        own = (_PROBE, _JSON)
        others = (name for name in asked if name not in own and not name.startswith(_TEXT))
        answered = dict.fromkeys(t for name in others for t in _GROUPS.get(name, (name,)))
        return cls(
            tuple(dict.fromkeys(texts)),
            _PROBE in asked,
            tuple(task for task in answered if task not in GENERATED_TASKS),
            _JSON in asked,
            tuple(task for task in answered if task in GENERATED_TASKS),
        )


def run_evaluation(
    names: Sequence[str],
    tasks: Tasks,
    settings: WorkerSettings,
    *,
    as_json: bool,
    out: Path | None,
) -> None:
    """Evaluate each model and report the results. Shared weights are read once."""
    console = Console(stderr=True)
    texts_dir = tasks.texts_dir or settings.data_dir / "texts"
    for text in tasks.texts:
        check_text_name(text, texts_dir)
    with _definitions(tasks) as tasks_dir:
        tasks = replace(tasks, tasks_dir=tasks_dir)
        if tasks.zero_shot:
            with saying(console, "Looking up lm-eval tasks"):
                check_tasks(tasks.zero_shot, tasks.tasks_dir)
        columns, measured = _evaluate(names, tasks, texts_dir, settings, console)
    evaluations = [_against_parent(column, measured) for column in columns]
    _remember(columns, measured, settings.data_dir)
    print_evaluations(evaluations, tasks.texts, as_json=as_json, out=out)


def _definitions(tasks: Tasks) -> AbstractContextManager[Path | None]:
    """A directory with definitions of tasks, if they are not lm-eval's own with its data."""
    if tasks.task_data is None or not tasks.zero_shot:
        return nullcontext(tasks.tasks_dir)
    return task_folder(tasks.task_data, tasks.zero_shot)


def _evaluate(
    names: Sequence[str],
    tasks: Tasks,
    texts_dir: Path,
    settings: WorkerSettings,
    console: Console,
) -> tuple[Sequence["_Column"], Mapping["_Column", "_Measured"]]:
    with saying(console, f"Looking up {', '.join(names)}"):
        set_up_torch(settings.threads)
        subjects = [subject_of(name, settings) for name in names]
    with_raw = bool(tasks.texts) or tasks.has_json
    with_dense = with_raw or bool(tasks.zero_shot or tasks.generated)
    columns = _columns(subjects, tasks.quantize, with_dense=with_dense, with_raw=with_raw)
    return columns, dict(_evaluated(columns, tasks, texts_dir, settings, console))


@dataclass(frozen=True)
class _Column:
    subject: Subject
    weights: Quantize | None = None  # None for those of the checkpoint

    @property
    def name(self) -> str:
        name = self.subject.name
        return name if self.weights is None else f"{name}, {self.weights} weights"


def _columns(
    subjects: Sequence[Subject], quantize: Quantize | None, *, with_dense: bool, with_raw: bool
) -> list[_Column]:
    """A column for each model, and with ``quantize`` another one with such weights.

    The control of a healed model is added behind it. Models that are not named are added as well:
    dense parents come first, if requested or if a model is quantized, and the raw form of a
    repaired model in front of it, if requested.
    """
    columns = []
    unrepaired = {(one.path, one.keep, one.weights) for one in subjects if one.repaired_by is None}
    for subject in subjects:
        raw = subject.raw if with_raw else None
        if raw is not None and (raw.path, raw.keep, raw.weights) not in unrepaired:
            unrepaired.add((raw.path, raw.keep, raw.weights))
            columns.append(_Column(raw, raw.weights))
        columns.append(_Column(subject, subject.weights))
        if quantize not in (None, subject.weights):
            columns.append(_Column(subject, quantize))
        if subject.control is not None:
            columns.append(_Column(subject.control, subject.weights))
    is_rounded = any(column.weights is not None for column in columns)
    if not with_dense and not is_rounded:
        return columns
    named = {one.path for one in subjects if not one.removed_blocks and one.weights is None}
    wholes = (one.parent if one.removed_blocks else one.path for one in subjects)
    parents = dict.fromkeys(path for path in wholes if path not in named)
    dense = [_Column(Subject(path.name, path, None, ())) for path in parents if path is not None]
    return [*dense, *columns]


@dataclass(frozen=True)
class _Measured:
    evaluation: Evaluation
    answers: tuple[Answers, ...]  # to questions of tasks


def _against_parent(column: _Column, measured: Mapping[_Column, _Measured]) -> Evaluation:
    """The evaluation with what it keeps of its dense parent: perplexity, and tasks."""
    evaluation, dense = measured[column].evaluation, _dense_of(column, measured)
    if dense is None:
        return evaluation
    pairs = zip(evaluation.perplexities, dense.evaluation.perplexities, strict=True)
    return replace(
        evaluation,
        perplexities=tuple(own.against(whole) for own, whole in pairs),
        task_shares=TaskShares.of(_paired(column, measured)),
    )


def _dense_of(column: _Column, measured: Mapping[_Column, _Measured]) -> _Measured | None:
    """The dense parent. None if it was not measured, and for itself."""
    path = column.subject.parent or column.subject.path
    dense = next(
        (
            found
            for one, found in measured.items()
            if one.subject.path == path and one.subject.is_dense and one.weights is None
        ),
        None,
    )
    return None if dense is measured[column] else dense


def _paired(column: _Column, measured: Mapping[_Column, _Measured]) -> list[PairedTask]:
    """The tasks of a model beside its dense parent. Empty if that was not measured."""
    dense = _dense_of(column, measured)
    if dense is None:
        return []
    pairs = zip(measured[column].answers, dense.answers, strict=True)
    return [own.against(whole) for own, whole in pairs]


def _remember(
    columns: Sequence[_Column], measured: Mapping[_Column, _Measured], data_dir: Path
) -> None:
    """Keep the tasks of variants of the catalog for advice. A full disk costs no result."""
    qualities = MeasuredQualities(data_dir)
    for column in columns:
        subject, tasks = column.subject, _paired(column, measured)
        if not tasks or subject.pinned_name is None or column.weights != subject.weights:
            continue
        path = subject.parent or subject.path
        try:
            qualities.record(path.name, fingerprint(path), tasks={subject.pinned_name: tasks})
        except OSError as error:
            logger.warning("the tasks of %s are not kept: %s", column.name, error)


def _evaluated(
    columns: Sequence[_Column],
    tasks: Tasks,
    texts_dir: Path,
    settings: WorkerSettings,
    console: Console,
) -> Iterator[tuple[_Column, _Measured]]:
    resources = replace(Resources.of(settings), num_actors=0)  # no search
    for path in dict.fromkeys(column.subject.path for column in columns):
        resident = tasks.resident or fitting_resident(path, resources)
        is_rounded = any(one.weights for one in columns if one.subject.path == path)
        if resident is Resident.STREAM and (tasks.zero_shot or is_rounded):
            raise NotEvaluable(
                f"{path} does not fit into memory and is streamed, but lm-eval tasks and "
                "quantized weights need the whole model in memory: leave them out, or use "
                "--resident model"
            )
        with saying(console, f"Loading {path.name}"):
            dense = load_dense_model(path, resident, resources, dtype=tasks.dtype)
        for column in [one for one in columns if one.subject.path == path]:
            console.print(column.name, markup=False, highlight=False, soft_wrap=True)
            with search_progress(console) as progress:
                yield column, _ModelEvaluation(column, dense, tasks, texts_dir, progress).run()


@dataclass(frozen=True)
class _ModelEvaluation:
    """A loaded model, and the tasks to measure."""

    column: _Column
    dense: DenseModel
    tasks: Tasks
    texts_dir: Path
    progress: Progress

    def run(self) -> _Measured:
        subject, weights = self.column.subject, self.column.weights
        answered = [*self._generated(), *self._zero_shot()]
        scores = [one.score for one in answered]
        evaluation = Evaluation(
            model=subject.name,
            weights=None if weights is None else weights.value,
            num_blocks=len(self._keep),
            removed_blocks=subject.removed_blocks,
            dtype=str(self.dense.model.dtype).removeprefix("torch."),
            perplexities=tuple(self._perplexity(text) for text in self.tasks.texts),
            probe=self._probe() if self.tasks.has_probe else None,
            valid_json=self._valid_json() if self.tasks.has_json else None,
            tasks=tuple(scores),
            zero_shot_mean=mean_accuracy(scores),
        )
        answers = (one.answers for one in answered if one.answers is not None)
        return _Measured(evaluation, tuple(answers))

    @property
    def _keep(self) -> Blocks:
        keep = self.column.subject.keep
        return self.dense.every_block if keep is None else keep

    @cached_property
    def _forward(self) -> Forward:
        subject, weights = self.column.subject, self.column.weights
        own = subject.own_tensors(self.dense)
        if subject.weights is None:
            return self.dense.forward(self._keep, weights, own)
        plain = self.dense.forward(self._keep, None, own)
        assert isinstance(plain, InMemoryForward), "streamed weights are not quantized"
        return InMemoryForward(int8_form(plain.model), batch_tokens=plain.batch_tokens)

    def _perplexity(self, text: str) -> Perplexity:
        seqlen = self.tasks.seqlen
        windows = text_windows(
            text,
            self.texts_dir,
            self.dense.model,
            self.dense.tokenizer,
            seqlen=default_seqlen(self.dense.model) if seqlen is None else seqlen,
            num_windows=self.tasks.num_windows,
        )
        with self._observed(f"ppl:{text}") as observe:
            return measure_perplexity(self._forward, windows, observe=observe)

    def _probe(self) -> ProbeScore:
        items = probe_items()
        with self._observed("probe") as observe:
            answers = answer(self._forward, self.dense.tokenizer, items, observe=observe)
        return summary(answers, digest(items))

    def _valid_json(self) -> JsonScore | None:
        """None for a model that is streamed: it would be read once for each token."""
        if not isinstance(self._forward, InMemoryForward):
            return None
        questions = json_questions()
        with self._observed("json") as observe:
            return json_score(self._forward.model, self.dense.tokenizer, questions, observe=observe)

    def _zero_shot(self) -> list[AnsweredTask]:
        if not self.tasks.zero_shot:
            return []
        with self._observed(", ".join(self.tasks.zero_shot)) as observe:
            return answer_tasks(
                self._forward.model,
                self.dense.tokenizer,
                self.tasks.zero_shot,
                tasks_dir=self.tasks.tasks_dir,
                limit=self.tasks.limit,
                observe=observe,
            )

    def _generated(self) -> list[AnsweredTask]:
        names, answered = self.tasks.generated, list[AnsweredTask]()
        for name in names:
            with self._observed(name) as observe:
                asked = (self._forward, self.dense.tokenizer, [name], self.tasks.limit)
                answered += answer_generated(*asked, observe)
        return answered

    @contextmanager
    def _observed(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show a progress bar during a measurement; without a terminal, first what it measures."""
        if not self.progress.console.is_terminal:
            self.progress.console.print(f"  {what}", markup=False, highlight=False)
        bar = self.progress.add_task(f"  {what}", total=None)

        def observe(done: int, total: int) -> None:
            self.progress.update(bar, completed=done, total=total)

        yield observe
        self.progress.stop_task(bar)
