"""Tables of runs and models on the terminal, and the same as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.config import ServeSettings
from app.models.catalog import Catalog
from app.models.entry import ModelEntry
from app.models.external import read_external_models
from app.terminal import print_json
from pruning.checkpoints.domain_tables import depth_table, explained
from pruning.checkpoints.store import CheckpointStore, Manifest
from pruning.checkpoints.trajectory import legend, rows, table
from pruning.checkpoints.trajectory_plot import PLOT_FILE
from pruning.models.store import ModelStore
from pruning.removal import Removal


def print_run(
    manifest: Manifest, removals: Sequence[Removal], path: Path, *, as_json: bool
) -> None:
    """Print the trajectory of a pruning run and the path of its checkpoint."""
    trajectory = rows(manifest, removals)
    if as_json:
        print_json(
            {
                "path": str(path),
                "plot": str(path / PLOT_FILE),
                "trajectory": [asdict(row) for row in trajectory],
                **asdict(manifest),
            }
        )
        return
    headings, cells = table(trajectory)
    console = Console(highlight=False)
    console.print(_table(f"{manifest.parent}, block by block", headings, cells))
    for text in legend(manifest, headings):
        console.print(text, markup=False, soft_wrap=True)
    if domains := manifest.quality.domains:
        by_domain = depth_table(domains, len(manifest.removed_blocks))
        console.print(_table("perplexity of the pruned model by domain", *by_domain))
        for text in explained(domains):
            console.print(text, markup=False, soft_wrap=True)
    share = 1 - manifest.num_parameters / manifest.dense_num_parameters
    for text in (
        f"plot: {path / PLOT_FILE}",
        f"{manifest.num_parameters:,} parameters, {share:.1%} less; published in {path}",
    ):
        console.print(text, markup=False, soft_wrap=True)


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=escape(title))
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def print_models(settings: ServeSettings, *, as_json: bool) -> None:
    """Print the catalog of the data directory; no server is needed."""
    models = ModelStore(settings.models_dir)
    external = read_external_models(settings.external_models_file)
    checkpoints = CheckpointStore(settings.checkpoints_dir)
    entries = Catalog(models, checkpoints, external=external).entries()
    if as_json:
        print_json([_entry_json(entry) for entry in entries])
        return
    listed = Table()
    for heading in ("model", "blocks", "removed blocks", "repair", "perplexity", ""):
        listed.add_column(heading, overflow="fold")
    for entry in entries:
        removed = " ".join(map(str, entry.removed_blocks))
        perplexity = f"{entry.perplexity:.2f}" if entry.perplexity is not None else ""
        repair = entry.repair.method.value if entry.repair else ""
        cells = (entry.name, str(entry.num_blocks), removed, repair, perplexity, entry.error or "")
        listed.add_row(*cells)
    Console().print(listed if entries else f"no models in {settings.models_dir}")


def _entry_json(entry: ModelEntry) -> dict[str, Any]:
    return {
        "id": entry.name,
        "parent": entry.parent,
        "num_blocks": entry.num_blocks,
        "removed_blocks": list(entry.removed_blocks),
        "repair": _repair_json(entry),
        "perplexity": entry.perplexity,
        "error": entry.error,
    }


def _repair_json(entry: ModelEntry) -> dict[str, Any] | None:
    if entry.repair is None:
        return None
    method, num_bytes = entry.repair.method, entry.repair.num_bytes
    return {"method": method, "bytes": num_bytes, "raw": entry.raw.name}
