"""A verdict on a terminal: the sentence, the next step, and a table of all candidates."""

from collections.abc import Callable, Iterable, Sequence

from rich.console import Console
from rich.table import Table

from app.terminal import filled, print_next
from pruning.evaluation.frontier import FrontierVerdict
from pruning.evaluation.points import Point
from pruning.evaluation.verdict_table import KEEPS, MODEL, explained, verdict_table


def print_verdict(
    verdict: FrontierVerdict,
    console: Console,
    costs: Sequence[str] = (),
    costs_of: Callable[[Point], Iterable[str]] = lambda _point: (),
) -> None:
    """``costs`` are headings of more columns, whose cells ``costs_of`` returns."""
    console.print(verdict.sentence, markup=False, style="bold")
    if (step := verdict.next_step) is not None:
        print_next(console, step.words, step.command)
    console.print()
    (*headings, last), rows = verdict_table(verdict)
    cells = [
        (*row[:-1], *costs_of(one.point), row[-1])
        for row, one in zip(rows, verdict.candidates, strict=True)
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    shown = filled(table, [*headings, *costs, last], cells, [MODEL, KEEPS], overflow="fold")
    console.print(shown)
    for line in explained(verdict):
        console.print(line, markup=False)
