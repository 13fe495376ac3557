"""The table of a run on the terminal, and the same as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.commands.domain_table import fits, print_domains
from app.terminal import filled, plain_table, print_json
from pruning.checkpoints.store import Manifest
from pruning.checkpoints.trajectory import legend, rows, table
from pruning.checkpoints.trajectory_plot import PLOT_FILE
from pruning.extras import has_extra, missing_extra
from pruning.removal import Removal
from pruning.store_url import StoreUrl

_DISPENSABLE = ("in full", "loss")  # the bars above have shown the losses


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
    trajectory = rows(manifest, removals)
    if as_json:
        print_json(
            {
                **_where(place),
                "trajectory": [asdict(row) for row in trajectory],
                **asdict(manifest),
            }
        )
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
    share = 1 - manifest.num_parameters / manifest.dense_num_parameters
    lines = [_plot_line(place / PLOT_FILE)] if isinstance(place, Path) else []
    lines.append(f"{manifest.num_parameters:,} parameters, {share:.1%} less; published in {place}")
    for text in lines:
        console.print(text, markup=False, soft_wrap=True)


def _plot_line(file: Path) -> str:
    return f"plot: {file}" if has_extra("plots") else missing_extra("plots", "a plot")


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
    shown = list(headings)
    for dispensable in (None, *_DISPENSABLE):
        shown = [heading for heading in shown if heading != dispensable]
        table = _table(title, shown, [dict(zip(headings, row, strict=True)) for row in rows])
        if fits(console, table):
            break
    return table


def _table(title: str, headings: Sequence[str], rows: Sequence[Mapping[str, str]]) -> Table:
    table = plain_table(escape(title), padding=(0, 1, 0, 0))
    cells = ([row[heading] for heading in headings] for row in rows)
    return filled(table, headings, cells, no_wrap=True)
