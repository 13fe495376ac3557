"""The quality on each domain of text as a table that fits into 80 columns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from app.terminal import filled, plain_table
from pruning.checkpoints.domain_tables import explained, narrow_table
from pruning.checkpoints.trajectory import NONE
from pruning.evaluation.quality import Compared, DomainAtDepth, Interval

_UNLIMITED = 10_000  # columns: what a table needs if nothing is folded
_INDENT = "    "


def print_domains(console: Console, domains: Sequence[DomainAtDepth]) -> None:
    """Print a section for each domain, and what its text is."""
    print_sections(console, "quality by domain", *narrow_table(domains))
    for text in explained(domains):
        console.print(text, markup=False)


def domain_of(view: Mapping[str, Any], *, is_repaired: bool) -> DomainAtDepth:
    """A domain of the model of a job, as the service describes it."""
    served = Compared(view["perplexity"], _interval(view, "ratio"))
    return DomainAtDepth(
        domain=view["domain"],
        text=view["text"],
        digest=view["digest"],
        dense=_interval(view, "dense_perplexity"),
        raw=Compared(view["raw_perplexity"], _interval(view, "raw_ratio")),
        repaired=served if is_repaired else None,
        recovered=view["recovered"],
    )


def print_sections(
    console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a table in which a row without values is the heading of those below it.

    If a label leaves no room for the values, labels have lines of their own, and stay whole.
    """
    shown = [[cell if cell != NONE else "" for cell in row] for row in rows]
    table = filled(plain_table(title), headings, shown, headings, overflow="fold")
    console.print()
    if not fits(console, table):
        console.print(title, style="table.title", markup=False)
        for line in _lines(headings, shown):
            console.print(line, markup=False, soft_wrap=True)
    else:
        console.print(table)


def fits(console: Console, table: Table) -> bool:
    """Whether the console has room for the table without a folded cell."""
    unlimited = console.options.update(width=_UNLIMITED)
    return console.measure(table, options=unlimited).maximum <= console.width


def _lines(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Each label, and below it its values if it has any, in columns."""
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]

    def values_of(row: Sequence[str]) -> str:
        cells = (cell.ljust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        return f"{_INDENT}{'   '.join(cells)}".rstrip()

    yield values_of(headings)
    yield "─" * (len(_INDENT) + sum(widths[1:]) + 3 * (len(widths) - 2))
    for row in rows:
        yield row[0]
        if any(row[1:]):
            yield values_of(row)


def _interval(view: Mapping[str, Any], name: str) -> Interval:
    return Interval(view[name], view[f"{name}_low"], view[f"{name}_high"])
