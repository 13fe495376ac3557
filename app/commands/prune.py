"""``sleb prune``: a pruning run in this process, with a progress bar and a table at the end."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from app.commands.tables import print_run
from app.config import ServeSettings
from app.models.hub import ensure_model, is_repo_id
from pruning.checkpoints.publish import CheckpointExists, free_bytes_at
from pruning.checkpoints.staging import remove_empty
from pruning.checkpoints.store import MANIFEST
from pruning.config import Settings, WorkerSettings
from pruning.jobs.estimate import DiskTooSmall, footprint
from pruning.models.demo_model import NAME, ensure_demo_model
from pruning.models.safetensors_files import fingerprint, weight_sizes
from pruning.models.store import ModelInfo, ModelStore, set_up_torch
from pruning.pipeline import prune
from pruning.removal import Removal
from pruning.search.dense_model import Resources
from pruning.search.observed import Observer
from pruning.search.refine import Exchange
from pruning.search.state import ScoredCandidate, SearchPlan
from pruning.search.state_file import SearchFile
from pruning.spec.prune import PruneSpec

_SEARCH = "search"  # the phase that may end early


class _Count(ProgressColumn):
    """Evaluations done, their total, and the percentage, which is rounded down."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text()
        done, total = int(task.completed), int(task.total)
        thousandths = 1000 * done // total if total else 1000
        bound = " at most" if task.fields.get("at_most") and done < total else ""
        return Text(f"{done} of{bound} {total}  {thousandths / 10:.1f}%", style="cyan")


class _Eta(ProgressColumn):
    """Estimated time left, at the pace since the first count. It decreases between two counts."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[TaskID, tuple[float, float]] = {}  # count, elapsed seconds
        self._last: dict[TaskID, tuple[float, float]] = {}

    def render(self, task: Task) -> Text:
        if task.total is None or task.finished or task.elapsed is None:
            return Text()
        now = task.completed, task.elapsed
        first = self._first.setdefault(task.id, now)
        if self._last.setdefault(task.id, now)[0] != task.completed:
            self._last[task.id] = now
        done, at_s = self._last[task.id]
        if done == first[0]:
            return Text("ETA -:--:--", style="blue")
        left_s = (at_s - first[1]) / (done - first[0]) * (task.total - done)
        seconds = round(max(0, at_s + left_s - task.elapsed))
        text = f"ETA {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return Text(text, style="blue")


def search_progress(console: Console) -> Progress:
    """Progress bars of candidate evaluations. A task without a total has no count and no ETA.

    A task with the field ``at_most`` may end before its total.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        _Count(),
        TimeElapsedColumn(),
        _Eta(),
        console=console,
    )


class SearchBar(Observer):
    """Observes a run: a bar for each phase, a line for each removal. Keeps the removals."""

    def __init__(self, progress: Progress, *, at_most: bool = False) -> None:
        self.removals: list[Removal] = []
        self._progress = progress
        self._at_most = at_most  # the search may end early
        self._task: TaskID | None = None

    def phase(self, phase: str) -> None:
        self.end()
        at_most = self._at_most and phase == _SEARCH
        self._task = self._progress.add_task(phase, total=None, at_most=at_most)

    def searching(self, _plan: SearchPlan, done: int, total: int) -> None:
        self.evaluated(done, total)

    def evaluated(self, done: int, total: int, _scored: ScoredCandidate | None = None) -> None:
        self._count(done, total)

    def repairing(self, done: int, total: int) -> None:
        self._count(done, total)

    def removed(self, removal: Removal) -> None:
        self.removals.append(removal)
        self._progress.console.print(
            f"  removed block {removal.block}: loss {removal.loss:.4f} "
            f"(dense {removal.dense_loss:.4f}){_lead(removal)}"
        )

    def exchanged(self, exchange: Exchange) -> None:
        restored, removed = (", ".join(map(str, b)) for b in (exchange.restored, exchange.removed))
        self._progress.console.print(
            f"  exchanged {restored} for {removed}: {exchange.score_before:.4f} -> "
            f"{exchange.score:.4f}"
        )

    def reordered(self, removals: Sequence[Removal]) -> None:
        self.removals = list(removals)

    def warned(self, message: str) -> None:
        self._progress.console.print(f"[yellow]warning:[/] {escape(message)}", soft_wrap=True)

    def _count(self, done: int, total: int) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total)

    def end(self) -> None:
        """End the phase. Only bars that count stay visible: of the search and of the repair."""
        if self._task is None:
            return
        task = self._progress.tasks[self._progress.task_ids.index(self._task)]
        is_counted = task.total is not None
        total = task.completed if task.fields["at_most"] else task.total  # an early end is 100 %
        self._progress.update(self._task, total=total, visible=is_counted)
        self._progress.stop_task(self._task)
        self._task = None


def _lead(removal: Removal) -> str:
    if removal.margin is None:
        return ""
    error = "" if removal.margin_error is None else f" ± {removal.margin_error:.4f}"
    return f", {removal.margin:.4f}{error} before {removal.runner_up}"


class RecordedBar(SearchBar):
    """Records the search as well, so that the same command can go on with it."""

    def __init__(
        self, progress: Progress, spec: PruneSpec, num_blocks: int, file: SearchFile
    ) -> None:
        super().__init__(progress, at_most=spec.max_perplexity_ratio is not None)
        self._spec = spec
        self._num_blocks = num_blocks
        self._file = file
        self.earlier = file.read()

    def searching(self, plan: SearchPlan, done: int, total: int) -> None:
        self._file.begin(plan)
        if plan == self.earlier.plan and done:
            self.removals = list(self.earlier.removals)
            self._print(f"  continues an interrupted search after {done} evaluations")
        if self._spec.target_speedup is not None and plan.times is not None:
            speedup = plan.times.speedup(self._num_blocks, plan.num_remove)
            self._print(
                f"  without {plan.num_remove} of {self._num_blocks} blocks, decoding is predicted "
                f"to be {speedup:.2f} times as fast"
            )
        super().searching(plan, done, total)

    def evaluated(self, done: int, total: int, scored: ScoredCandidate | None = None) -> None:
        if scored is not None:
            self._file.scored(scored)
        super().evaluated(done, total, scored)

    def removed(self, removal: Removal) -> None:
        self._file.removed(removal)
        super().removed(removal)

    def decided(self, name: str, removal: Removal) -> None:
        self._file.decided(name, removal)

    def _print(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True)


def new_place(out: Path, *, overwrite: bool = False) -> Path:
    """The absolute path. Raises ``CheckpointExists`` unless it is free or an empty directory.

    ``overwrite`` allows a checkpoint, and nothing else.
    """
    out = out.expanduser().absolute()
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    if not overwrite:
        raise CheckpointExists(f"{out} exists already: choose another --out")
    if not (out / MANIFEST).is_file():
        raise CheckpointExists(
            f"{out} is not overwritten: it is no checkpoint, as it has no {MANIFEST}; choose "
            f"another --out"
        )
    return out


def models_for(spec: PruneSpec, settings: Settings) -> ModelStore:
    """The models by name or path. The demo model is fetched if the spec names it."""
    set_up_torch(settings.threads)
    if spec.model == NAME:
        ensure_demo_model(settings.models_dir)
    return ModelStore(settings.models_dir, allow_paths=True)


def run_prune(
    spec: PruneSpec, out: Path, settings: WorkerSettings, *, overwrite: bool = False, as_json: bool
) -> None:
    """Publish at ``out``, which must be empty or not exist, unless ``overwrite`` is set.

    An interrupted search, or one whose result could not be published, is continued by the same
    spec of the same model. Raises ``DiskTooSmall`` before the search.
    """
    out = new_place(out, overwrite=overwrite)
    spec = replace(spec, model=_local_name(spec.model, settings))
    models = models_for(spec, settings)
    info = models.inspect(spec.model)
    _check_disk(spec, info, out)
    file = SearchFile(_record(spec, info, settings))
    console = Console(stderr=True)
    try:
        with search_progress(console) as progress:
            bar = RecordedBar(progress, spec, info.num_blocks, file)
            manifest = prune(
                spec,
                name=out.name,
                target=out,
                models=models,
                observer=bar,
                resources=Resources.of(settings),
                earlier=bar.earlier,
                verify=settings.verify,
                overwrite=overwrite,
            )
            bar.end()
    except BaseException:
        if file.path.exists():
            console.print("The search is kept: the same command goes on with it.")
        raise
    finally:
        remove_empty(out.parent)
    file.discard()
    print_run(manifest, bar.removals, out, as_json=as_json)


def _local_name(model: str, settings: Settings) -> str:
    """The name of a model of the data directory; ``ORG/NAME`` of the hub is added to it first."""
    if Path(model).is_dir() or not is_repo_id(model):
        return model
    path = ensure_model(model, ServeSettings(data_dir=settings.data_dir))
    return path.name


def _check_disk(spec: PruneSpec, info: ModelInfo, out: Path) -> None:
    """Raises what ``PruneSpec.num_evaluations`` raises, or ``DiskTooSmall``."""
    spec.num_evaluations(info.num_blocks)
    least_bytes = footprint(spec, info, weight_sizes(info.path)).least_checkpoint_bytes
    if least_bytes > (free_bytes := free_bytes_at(out)):
        raise DiskTooSmall(least_bytes, free_bytes, f"on the disk of {out.parent}")


def _record(spec: PruneSpec, info: ModelInfo, settings: Settings) -> Path:
    """Where the search is recorded: one file for each spec and content of the model."""
    words = f"{spec.digest()} {fingerprint(info.path)}"
    digest = hashlib.sha256(words.encode()).hexdigest()
    return settings.data_dir / "searches" / f"{digest}.jsonl"
