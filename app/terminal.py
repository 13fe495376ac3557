"""What commands print: JSON, times and what they do. Light, so that those which need no model
start at once.
"""

import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic_core import to_json
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table


def json_text(data: object, indent: int | None = None) -> str:
    """Dataclasses, enums and pydantic models too, by the serialiser of the REST API."""
    return to_json(data, indent=indent, inf_nan_mode="null").decode()


def print_next(console: Console, what: str, command: str) -> None:
    """The next command to run, in one line, so that it can be copied."""
    console.print(f"Next: {what}: {command}", markup=False, soft_wrap=True)


def print_json(data: object) -> None:
    Console().print_json(json_text(data))


def local_time(seconds: float) -> str:
    """Seconds since 1970 in the time zone of this machine, as every command shows times."""
    return f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def plain_table(title: str | None = None, **options: Any) -> Table:  # noqa: ANN401 - those of rich
    """A table without lines between columns, which leaves them the room."""
    return Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        **options,
    )


def filled(
    table: Table,
    headings: Iterable[str],
    rows: Iterable[Iterable[str]],
    left: Collection[str] = (),
    **of_columns: Any,  # noqa: ANN401 - those of rich
) -> Table:
    """The table with these rows. Columns whose headings are not in ``left`` end at the right."""
    for heading in headings:
        justify: Literal["left", "right"] = "left" if heading in left else "right"
        table.add_column(escape(heading), justify=justify, **of_columns)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


@contextmanager
def starting() -> Iterator[None]:
    """Say so on a terminal while a command imports what it runs: torch takes seconds."""
    sign = "starting"
    _show(sign)
    try:
        yield
    finally:
        _show(" " * len(sign))


def _show(sign: str) -> None:
    """The cursor stays in front of it, so what another process writes takes its place."""
    if sys.stderr.isatty():
        sys.stderr.write(f"{sign}\r")
        sys.stderr.flush()


@contextmanager
def saying(console: Console, what: str) -> Iterator[None]:
    """Show what is done; without a terminal, which has no status, in a line."""
    if not console.is_terminal:
        console.print(what, markup=False, highlight=False, soft_wrap=True)
    with console.status(escape(what)):
        yield
