"""``sleb prune``: a pruning run in this process, with a progress bar and a table at the end."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from app.commands.domain_table import fits, print_domains
from app.commands.progress import SearchBar, search_progress
from app.commands.task_table import print_tasks
from app.config import ServeSettings
from app.models.add import ensure_model
from app.models.demo_bar import demo_model_with_bar
from app.models.hub import is_repo_id
from app.models.measured_speedups import MeasuredSpeedups
from app.models.stored import Outgoing
from app.terminal import filled, plain_table, print_json, print_next
from pruning.checkpoints.publish import CheckpointExists, free_bytes_at
from pruning.checkpoints.staging import remove_empty
from pruning.checkpoints.store import MANIFEST, Manifest
from pruning.checkpoints.trajectory import legend, rows, table
from pruning.checkpoints.trajectory_plot import PLOT_FILE
from pruning.config import Settings, WorkerSettings
from pruning.evaluation.task_shares import TaskShares
from pruning.extras import has_extra, missing_extra
from pruning.jobs.estimate import DiskTooSmall, footprint
from pruning.models.demo_model import NAME
from pruning.models.safetensors_headers import fingerprint, weight_sizes
from pruning.models.store import ModelInfo, ModelStore, set_up_torch
from pruning.pipeline import prune
from pruning.plural import counted
from pruning.removal import Removal
from pruning.search.dense_model import Resources
from pruning.search.state import ScoredCandidate, SearchFile, SearchPlan
from pruning.spec.prune import PruneSpec
from pruning.store_url import StoreUrl, is_store_url

_DISPENSABLE = ("in full", "loss")  # columns: the bars above have shown the losses


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
            self._print(f"  resuming an interrupted search after {counted(done, 'evaluation')}")
        if self._spec.target_speedup is not None and plan.times is not None:
            speedup = plan.times.speedup(self._num_blocks, plan.num_remove)
            self._print(
                f"  predicted decoding speed-up without {plan.num_remove} of {self._num_blocks} "
                f"blocks: {speedup:.2f}×"
            )
        super().searching(plan, done, total)

    def evaluated(self, done: int, total: int, scored: Sequence[ScoredCandidate] = ()) -> None:
        for candidate in scored:
            self._file.scored(candidate)
        super().evaluated(done, total, scored)

    def removed(self, removal: Removal) -> None:
        self._file.removed(removal)
        super().removed(removal)

    def _print(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True)


def new_place(out: Path, *, overwrite: bool | None = None) -> Path:
    """The absolute path. Raises ``CheckpointExists`` unless it is free or an empty directory.

    ``overwrite`` allows a checkpoint, and nothing else. None: the command has no such option.
    """
    out = out.expanduser().absolute()
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return out
    if not overwrite:
        option = "" if overwrite is None else ", or use --overwrite"
        raise CheckpointExists(f"{out} already exists: choose another --out{option}")
    if not (out / MANIFEST).is_file():
        raise CheckpointExists(
            f"{out} is not a checkpoint (it has no {MANIFEST}), so it is not overwritten: "
            "choose another --out"
        )
    return out


def models_for(spec: PruneSpec, settings: Settings) -> ModelStore:
    """The models by name or path. The demo model is fetched if the spec names it."""
    set_up_torch(settings.threads)
    if spec.model == NAME:
        demo_model_with_bar(settings.models_dir)
    return ModelStore(settings.models_dir, allow_paths=True)


def run_prune(
    spec: PruneSpec,
    out: Path | StoreUrl,
    settings: WorkerSettings,
    *,
    overwrite: bool = False,
    as_json: bool,
) -> None:
    """Publish at ``out``, which must be empty or not exist, unless ``overwrite`` is set.

    An interrupted search, or one whose result could not be published, is continued by the same
    spec of the same model. Raises ``DiskTooSmall`` before the search.
    """
    spec = replace(spec, model=_local_name(spec.model, settings))
    if isinstance(out, Path):
        out = new_place(out, overwrite=overwrite)
        manifest, removals = _prune_here(spec, out, settings, overwrite=overwrite)
    else:
        manifest, removals = _prune_to_store(spec, out, settings, overwrite=overwrite)
    speedups = _measured_speedups(spec.model, manifest, settings.data_dir)
    print_run(manifest, removals, out, speedups=speedups, as_json=as_json)


def _prune_to_store(
    spec: PruneSpec, url: StoreUrl, settings: WorkerSettings, *, overwrite: bool
) -> tuple[Manifest, Sequence[Removal]]:
    """Publish on this disk first. What could not be sent earlier is sent without a search."""
    outgoing = Outgoing(url, settings.data_dir, overwrite=overwrite)
    outgoing.check()
    run: tuple[Manifest, Sequence[Removal]]
    if (earlier := outgoing.kept(spec.digest())) is not None:
        run = earlier, ()
    else:
        run = _prune_here(spec, outgoing.path, settings, overwrite=True)
    console = Console(stderr=True, highlight=False)
    with console.status(f"Uploading the checkpoint to {escape(str(url))}"):
        text = outgoing.send()
    console.print(text, markup=False, soft_wrap=True)
    return run


def _prune_here(
    spec: PruneSpec, out: Path, settings: WorkerSettings, *, overwrite: bool
) -> tuple[Manifest, Sequence[Removal]]:
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
            console.print("The search state is saved: run the same command to continue.")
        raise
    finally:
        remove_empty(out.parent)
    file.discard()
    return manifest, bar.removals


def _local_name(model: str, settings: Settings) -> str:
    """The name of a model of the data directory. One of the hub or a store is added to it first."""
    if Path(model).is_dir() or not (is_repo_id(model) or is_store_url(model)):
        return model
    path = ensure_model(model, ServeSettings(data_dir=settings.data_dir))
    return path.name


def _measured_speedups(model: str, manifest: Manifest, data_dir: Path) -> dict[int, str]:
    measured = MeasuredSpeedups(data_dir)
    depths, weights = range(1, len(manifest.removed_blocks) + 1), manifest.parent_fingerprint
    speedups = {depth: measured.of(model, depth, fingerprint=weights) for depth in depths}
    return {depth: str(speedup) for depth, speedup in speedups.items() if speedup is not None}


def _check_disk(spec: PruneSpec, info: ModelInfo, out: Path) -> None:
    """Raises what ``PruneSpec.num_evaluations`` raises, or ``DiskTooSmall``."""
    spec.num_evaluations(info.num_blocks)
    least_bytes = footprint(spec, info, weight_sizes(info.path)).least_checkpoint_bytes
    if least_bytes > (free_bytes := free_bytes_at(out)):
        raise DiskTooSmall(least_bytes, free_bytes, f"on the disk of {out.parent}")


def _record(spec: PruneSpec, info: ModelInfo, settings: Settings) -> Path:
    """Where the search is recorded: one file for each search and content of the model."""
    words = f"{spec.search_digest()} {fingerprint(info.path)}"
    digest = hashlib.sha256(words.encode()).hexdigest()
    return settings.data_dir / "searches" / f"{digest}.jsonl"


def print_run(
    manifest: Manifest,
    removals: Sequence[Removal],
    place: Path | StoreUrl,
    *,
    speedups: Mapping[int, str],
    as_json: bool,
) -> None:
    """Print the trajectory of a pruning run and where its checkpoint is.

    ``speedups`` are those measured on this machine, by number of removed blocks.
    """
    trajectory = rows(manifest, removals[: len(manifest.removed_blocks)])
    if as_json:
        print_json({**_where(place), "trajectory": trajectory, **asdict(manifest)})
        return
    headings, cells = table(trajectory)
    console = Console(highlight=False)
    fitting = _fitting(console, f"{manifest.parent}, block by block", headings, cells)
    console.print(fitting)
    shown = tuple(str(column.header) for column in fitting.columns)
    for text in legend(manifest, shown, trajectory, speedups):
        console.print(text, markup=False)
    if domains := manifest.quality.domains:
        num_removed = len(manifest.removed_blocks)
        print_domains(console, [domain.at_depth(num_removed) for domain in domains])
    print_tasks(console, TaskShares.of(manifest.quality.tasks))
    share = 1 - manifest.num_parameters / manifest.dense_num_parameters
    lines = []
    if isinstance(place, Path):
        plot = f"plot: {place / PLOT_FILE}"
        lines.append(plot if has_extra("plots") else missing_extra("plots", "a plot"))
    lines.append(
        f"{manifest.num_parameters:,} parameters, {share:.1%} fewer than the dense "
        f"model; published in {place}"
    )
    for text in lines:
        console.print(text, markup=False, soft_wrap=True)
    print_next(console, *_next(place))


def _next(place: Path | StoreUrl) -> tuple[str, str]:
    """What to do with the checkpoint, and the command for it."""
    if isinstance(place, Path):
        return "compare it with the dense model", f"sleb eval {quote(str(place))}"
    return "add it to the models of this machine", f"sleb models add {quote(str(place))}"


def _where(place: Path | StoreUrl) -> dict[str, str]:
    """A store keeps the plot under its digest."""
    if isinstance(place, Path):
        plot = place / PLOT_FILE
        return {"path": str(place)} | ({"plot": str(plot)} if has_extra("plots") else {})
    return {"url": str(place)}


def _fitting(
    console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> Table:
    """The table without columns for which the terminal has no room, so that all others are whole.

    removal.json and the model card have these as well.
    """
    shown: Sequence[int] = range(len(headings))
    for dispensable in (None, *_DISPENSABLE):
        shown = [column for column in shown if headings[column] != dispensable]
        whole = filled(
            plain_table(escape(title), padding=(0, 1, 0, 0)),
            [headings[column] for column in shown],
            ([row[column] for column in shown] for row in rows),
            no_wrap=True,
        )
        if fits(console, whole):
            break
    return whole
