"""``sleb config``: what is in effect. Imports are lazy."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def config(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print every setting as it is here, and where that comes from; secrets are masked."""
    from app.config import serve_settings
    from app.settings import check_ports, effective
    from pruning.config import WorkerSettings

    check_ports(serve_settings(), WorkerSettings())
    found = effective()
    if as_json:
        typer.echo(json.dumps([asdict(its) for its in found], indent=2))
        return
    table = Table()
    for heading in ("variable", "value", "from"):
        table.add_column(heading, overflow="fold")
    for its in found:
        table.add_row(its.variable, escape(its.value), its.source)
    Console(highlight=False).print(table)
