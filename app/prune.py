"""``sleb prune``: one pruning run in this process, with a progress bar and a table at the end."""

from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from app.tables import print_manifest
from pruning.checkpoints import CheckpointExists
from pruning.config import Settings
from pruning.demo_model import NAME, ensure_demo_model
from pruning.models import ModelStore, set_up_torch
from pruning.pipeline import prune
from pruning.sleb import Removal
from pruning.spec import PruneSpec


def search_progress(console: Console) -> Progress:
    """A bar over candidate evaluations, whose number is known from the start."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )


class _Bar:
    """Shows a run: a bar for the search, a line for every phase and every removal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("load", total=None)

    def phase(self, phase: str) -> None:
        self._progress.update(self._task, description=phase)

    def evaluated(self, done: int, total: int) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def removed(self, removal: Removal) -> None:
        margin = "" if removal.margin is None else f", {removal.margin:.4f} before the next"
        self._progress.console.print(
            f"  removed block {removal.block}: loss {removal.loss:.4f} "
            f"(dense {removal.dense_loss:.4f}){margin}"
        )


def run_prune(spec: PruneSpec, out: Path, settings: Settings, *, as_json: bool) -> None:
    """Publish at ``out``, which must not be there yet."""
    out = out.expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointExists(f"{out} exists already: choose another --out")
    set_up_torch(settings.threads)
    if spec.model == NAME:
        ensure_demo_model(settings.models_dir)
    models = ModelStore(settings.models_dir, allow_paths=True)
    with search_progress(Console(stderr=True)) as progress:
        manifest = prune(
            spec,
            name=out.name,
            target=out,
            models=models,
            observer=_Bar(progress),
            device=settings.device,
        )
    print_manifest(manifest, out, as_json=as_json)
