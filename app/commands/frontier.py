"""``sleb frontier``: the verdict in a sentence, and a table of all candidates."""

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from app.frontier.run import Asked, Frontier, measure_frontier, to_wire
from app.models.measured_speedups import Measurand
from app.terminal import filled, json_text, print_json, print_next
from pruning.config import Settings
from pruning.evaluation.frontier import Point, quality_of
from pruning.evaluation.quality import Interval
from pruning.evaluation.verdict import Verdict

_MIB = 2**20
_LIMIT = {Verdict.KEPT: "", Verdict.EXCEEDED: "beyond", Verdict.UNDECIDED: "open"}


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
    verdict = frontier.verdict
    console.print(verdict.sentence, markup=False, style="bold")
    if (step := verdict.next_step) is not None:
        print_next(console, step.words, step.command)
    console.print()
    headings = ["", "model", *(load.name for load in frontier.loads), "perplexity", "MiB"]
    headings += ["$/M"] if frontier.prices else []
    rows = ([*_cells(frontier, point)] for point in frontier.points)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    console.print(filled(table, [*headings, "limit"], rows, ["model", "limit"], overflow="fold"))
    for line in _explained(frontier):
        console.print(line, markup=False)


def _cells(frontier: Frontier, point: Point) -> Iterator[str]:
    verdict, what = frontier.verdict, Measurand(point.num_removed, point.is_int8)
    is_taken = point.name in verdict.taken.values()
    yield "→" if is_taken else "*" if point.name in verdict.frontier else ""
    yield "dense" if point.is_dense else point.short_name
    for load in frontier.loads:
        yield _with_reach(point.speeds.get(load.name))
    yield _with_reach(point.worst, 3)
    num_bytes = frontier.weight_bytes.get(what)
    yield "-" if num_bytes is None else f"{num_bytes / _MIB:,.0f}"
    if frontier.prices:
        yield f"{frontier.prices[what]:,.2f}" if what in frontier.prices else "-"
    yield _LIMIT[quality_of(point, frontier.asked.max_ratio)]


def _with_reach(interval: Interval | None, digits: int = 2) -> str:
    """The value, and how far its interval reaches to each side on average."""
    if interval is None:
        return "-"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.{digits}f}"
    reach = f"{(interval.high - interval.low) / 2:.{digits}f}".removeprefix("0")
    return f"{interval.value:.{digits}f}±{reach}"


def _explained(frontier: Frontier) -> Iterator[str]:
    loads = ", ".join(f"{load.name}: {load.words}" for load in frontier.loads)
    yield f"→ to be taken, * on the frontier: no other is surely better; {loads}"
    yield (
        "speeds: times as fast as the dense model in turns, per token or to the first token of a "
        "prompt; that of dense is the noise"
    )
    yield (
        "perplexity: times the dense model's on the text that lost most; limit: "
        f"{frontier.asked.max_ratio:g}; ± half of an interval of 95 %"
    )
    if frontier.prices and frontier.priced_at is not None:
        yield f"$/M: price of a million tokens {frontier.priced_at.words}"
    if frontier.left_out:
        yield f"left out, as they lose too much without int8: {', '.join(frontier.left_out)}"
    if frontier.is_cut_short:
        yield f"stopped after {frontier.asked.max_minutes:g} minutes"
    for text in frontier.verdict.undecided:
        yield f"not decided: {text}"
