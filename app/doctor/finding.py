"""Findings: the result of one check of the doctor, and how findings are printed."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.terminal import print_json
from pruning.plural import counted


class Level(StrEnum):
    OK = "ok"
    NOTE = "note"  # works, but the user may want to know
    WRONG = "wrong"


_COLOURS = {Level.OK: "green", Level.NOTE: "yellow", Level.WRONG: "red"}


@dataclass(frozen=True)
class Finding:
    """``said`` is what was found; ``advice`` is empty if there is nothing to do.

    A detail is printed only with ``--verbose``, and always as JSON.
    """

    check: str
    level: Level
    said: str
    advice: str = ""
    is_detail: bool = False


def fine(check: str, said: str) -> Finding:
    return Finding(check, Level.OK, said)


def detail(check: str, said: str) -> Finding:
    return Finding(check, Level.OK, said, is_detail=True)


def note(check: str, said: str, advice: str) -> Finding:
    return Finding(check, Level.NOTE, said, advice)


def wrong(check: str, said: str, advice: str) -> Finding:
    return Finding(check, Level.WRONG, said, advice)


def size(num_bytes: float) -> str:
    """A number of bytes in GB, the unit of disks and model files."""
    return f"{num_bytes / 1e9:.1f} GB"


def print_findings(
    findings: Iterable[Finding], console: Console, *, as_json: bool, is_verbose: bool = False
) -> bool:
    """Print each finding as it comes. Returns whether none is wrong."""
    printed = []
    for finding in findings:
        printed.append(finding)
        if not as_json and (is_verbose or not finding.is_detail):
            console.print(_line(finding))
    num_wrong = sum(finding.level is Level.WRONG for finding in printed)
    if as_json:
        print_json({"healthy": not num_wrong, "findings": printed})
    else:
        num_hidden = 0 if is_verbose else sum(finding.is_detail for finding in printed)
        more = f"; --verbose shows {counted(num_hidden, 'detail')}" if num_hidden else ""
        console.print((f"problems found: {num_wrong}" if num_wrong else "no problems found") + more)
    return not num_wrong


def _line(finding: Finding) -> Table:
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=max(map(len, Level)))
    line.add_column(overflow="fold")
    line.add_row(f"[{_COLOURS[finding.level]}]{finding.level}[/]", _text(finding))
    return line


def _text(finding: Finding) -> str:
    """The check and what was found, below each other if that has several lines, and the advice."""
    space = "\n- " if "\n" in finding.said else " "
    said = escape(finding.said.replace("\n", "\n- "))
    advice = f"\n[bold]fix:[/] {escape(finding.advice)}" if finding.advice else ""
    return f"{escape(finding.check)}:{space}{said}{advice}"
