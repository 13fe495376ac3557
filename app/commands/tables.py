"""The table of a run on the terminal, and the same as JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.commands.domain_table import print_domains
from app.terminal import print_json
from pruning.checkpoints.store import Manifest
from pruning.checkpoints.trajectory import legend, rows, table
from pruning.checkpoints.trajectory_plot import PLOT_FILE
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
    for text in legend(manifest, headings, trajectory):
        console.print(text, markup=False, soft_wrap=True)
    if domains := manifest.quality.domains:
        num_removed = len(manifest.removed_blocks)
        print_domains(console, [domain.at_depth(num_removed) for domain in domains])
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
