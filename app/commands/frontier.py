"""``sleb frontier``: the verdict in a sentence, and a table of all candidates."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from app.commands.verdict import print_verdict
from app.frontier.run import Asked, Frontier, measure_frontier, to_wire
from app.models.measured_speedups import Measurand
from app.terminal import json_text, print_json
from pruning.config import Settings
from pruning.evaluation.points import Point

_MIB = 2**20


def run_frontier(asked: Asked, settings: Settings, *, as_json: bool, out: Path | None) -> None:
    """Measure and print. Raises as ``measure_frontier``, and ``OSError`` for ``out``."""
    if out is not None:  # an error now, and not after the measurements
        out.parent.mkdir(parents=True, exist_ok=True)
        out.touch()
    errors = Console(stderr=True, highlight=False)
    with errors.status("") as status:

        def say(what: str) -> None:
            status.update(what)
            if not errors.is_terminal:
                errors.print(what, markup=False)

        frontier = measure_frontier(asked, settings, say)
    if out is not None:
        out.write_text(json_text(to_wire(frontier), indent=2) + "\n", encoding="utf-8")
    if as_json:
        print_json(to_wire(frontier))
    else:
        print_frontier(frontier, Console(highlight=False))


def print_frontier(frontier: Frontier, console: Console) -> None:
    costs = ["MiB", *(["$/M"] if frontier.prices else [])]
    print_verdict(frontier.verdict, console, costs, lambda point: _costs(frontier, point))
    for line in _explained(frontier):
        console.print(line, markup=False)


def _costs(frontier: Frontier, point: Point) -> Iterator[str]:
    what = Measurand(point.num_removed, point.is_int8)
    num_bytes = frontier.weight_bytes.get(what)
    yield "-" if num_bytes is None else f"{num_bytes / _MIB:,.0f}"
    if frontier.prices:
        yield f"{frontier.prices[what]:,.2f}" if what in frontier.prices else "-"


def _explained(frontier: Frontier) -> Iterator[str]:
    yield "the speed of dense is the noise: all take turns with it"
    if frontier.prices and frontier.priced_at is not None:
        yield f"$/M: price of a million tokens {frontier.priced_at.words}"
    if frontier.left_out:
        yield f"left out, as they lose too much without int8: {', '.join(frontier.left_out)}"
    if frontier.is_cut_short:
        yield f"stopped after {frontier.asked.max_minutes:g} minutes"
    for text in frontier.verdict.undecided:
        yield f"not decided: {text}"
