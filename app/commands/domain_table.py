"""The quality on each domain of text as a table that fits into 80 columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pruning.checkpoints.domain_tables import explained, narrow_table
from pruning.checkpoints.trajectory import NONE
from pruning.evaluation.quality import Compared, DomainAtDepth, Interval


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
    """Print a table in which a row without values is the heading of those below it."""
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False
    )
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) if cell != NONE else "" for cell in row))
    console.print()
    console.print(table)


def _interval(view: Mapping[str, Any], name: str) -> Interval:
    return Interval(view[name], view[f"{name}_low"], view[f"{name}_high"])
