"""``sleb stability``: one search over several samples of text, and the agreement of the results."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID
from rich.table import Table

from app.commands.progress import search_progress
from app.commands.prune import models_for, new_place
from app.results.store import ResultKind, ResultStore
from app.terminal import filled, json_text, plain_table, print_json
from pruning.checkpoints.trajectory import Cells
from pruning.config import WorkerSettings
from pruning.search.dense_model import Resources, load_dense_model
from pruning.search.observed import Observer
from pruning.search.state import ScoredCandidate, SearchPlan
from pruning.spec.calibration import CalibrationSpec
from pruning.spec.prune import PruneSpec
from pruning.stability.agreement import SearchRun, Stability, stability
from pruning.stability.report import block_table, conclusions, depth_table, to_wire
from pruning.stability.runs import runs, samples, unused_windows

REPORT_FILE = "stability.json"


class _RunBar(Observer):
    """Observes run ``number`` of all searches, which share one progress bar."""

    def __init__(self, progress: Progress, task: TaskID, number: int) -> None:
        self._progress = progress
        self._task = task
        self._number = number
        self._total = 0  # of a run, at most

    def searching(self, _plan: SearchPlan, done: int, total: int) -> None:
        self._total = total
        self.evaluated(done, total)

    def evaluated(self, done: int, _total: int, _scored: Sequence[ScoredCandidate] = ()) -> None:
        self._progress.update(self._task, completed=self._number * self._total + done)


def run_stability(
    spec: PruneSpec,
    texts: Mapping[str, CalibrationSpec],
    seeds: Sequence[int],
    out: Path,
    settings: WorkerSettings,
    *,
    as_json: bool,
) -> None:
    """Write the report into ``out``, which must be empty or not exist.

    It is written after the second run and updated after each further run, and so is the result
    that the data directory keeps.
    """
    out = new_place(out)
    models = models_for(spec, settings)
    num_blocks = models.inspect(spec.model).num_blocks
    total = spec.num_evaluations(num_blocks) * len(texts) * len(seeds)
    resources = Resources.of(settings)
    num_free = num_blocks - spec.protect_first - spec.protect_last
    finished: list[SearchRun] = []
    result_id: str | None = None  # of what the data directory keeps
    with search_progress(Console(stderr=True)) as progress:
        loading = progress.add_task("load", total=None)
        path = models.path(spec.model)
        dense = load_dense_model(path, spec.resident, resources, dtype=spec.dtype)
        sampled = samples(texts, seeds, dense.model, dense.tokenizer)
        evaluated_on = unused_windows(sampled, dense.model, dense.tokenizer)
        progress.remove_task(loading)
        task = progress.add_task("search", total=total)
        for run in runs(spec, dense, sampled, evaluated_on, lambda n: _RunBar(progress, task, n)):
            finished.append(run)
            progress.console.print(f"  {run.name}: {list(run.order)}", markup=False)
            report = stability(spec.model, num_blocks, num_free, finished)
            if len(finished) > 1:
                _write(out, report)
                result_id = _keep(report, settings, result_id)
    print_report(report, out, as_json=as_json)


def _write(out: Path, report: Stability) -> None:
    out.mkdir(parents=True, exist_ok=True)
    text = json_text(to_wire(report), indent=2) + "\n"
    (out / REPORT_FILE).write_text(text, encoding="utf-8")


def _keep(report: Stability, settings: WorkerSettings, result_id: str | None) -> str:
    headline = next(conclusions(report))
    store = ResultStore(settings.data_dir)
    return store.keep(ResultKind.STABILITY, report.model, headline, to_wire(report), result_id)


def print_report(report: Stability, out: Path, *, as_json: bool) -> None:
    """Print two tables and the conclusions from them."""
    if as_json:
        print_json({"path": str(out), **to_wire(report)})
        return
    console = Console(highlight=False)
    console.print(_printed(f"{report.model}, by block", *block_table(report)))
    console.print()
    console.print(_printed("by depth", *depth_table(report)))
    for text in conclusions(report):
        console.print(text, markup=False)
    console.print(f"report: {out}", markup=False, soft_wrap=True)


def _printed(title: str, headings: Cells, lines: Sequence[Cells]) -> Table:
    """A table that is at most as wide as the terminal; of wide headings, a word is a line."""
    # a title is folded at the width of its table
    table = plain_table(escape(title), min_width=len(title), padding=0)
    return filled(table, headings, lines, overflow="fold")
