"""The report of ``sleb bench`` in words and tables.

The speed-ups of ``sleb bench`` as a picture: each with its interval, beside the ideal.
"""

from collections.abc import Sequence
from io import BytesIO
from statistics import fmean
from typing import TYPE_CHECKING

from app.bench.plan import DENSE, Scenario
from app.bench.result import Bench, Row
from app.bench.runs import Sample
from app.compare.speedup import EQUAL_WITHIN, Verdict
from pruning.checkpoints.trajectory_plot import STYLE

HEADINGS = ("side", "what", "dense", "variant", "speed-up", "interval", "ideal", "verdict")

_HOW = """\
Dense model and variants took turns, each first equally often, on the same prompts with answers of
forced lengths, after a short run of each that does not count. A speed-up is a ratio of mean times
over {repeats} repeats, with its 95 % interval. It has a verdict only if that is no wider than the
effect, or lies within {equal:.0%} of 1. The ideal is that of a forward of nothing but embeddings,
blocks and head.
"""


def markdown(bench: Bench) -> str:
    """The whole report; ends with a newline."""
    subject, plan = bench.subject, bench.plan
    how = _HOW.format(repeats=plan.repeats, equal=EQUAL_WITHIN)
    lines = [f"# {subject.name}: what fewer blocks buy", "", how]
    lines += [f"- `{name}`: {_removed(blocks)}" for name, blocks in subject.removed.items()]
    for scenario, samples in bench.samples.items():
        rows = [row for row in bench.rows() if row.scenario is scenario]
        lines += ["", f"## {scenario.capitalize()}: {plan.described(scenario)}", ""]
        lines += _table(HEADINGS, [cells(row) for row in rows], num_left=2)
        lines += ["", *(f"- {its}" for its in reasons(rows)), ""]
        headings = ("side", "tokens per second", "peak GPU memory", "energy per token")
        sides = {side: runs for side, runs in samples.items() if side in {DENSE, *subject.removed}}
        lines += _table(headings, [_usage(side, runs) for side, runs in sides.items()], num_left=1)
    machine = bench.facts.get("machine")
    lines += ["", "## Machine", "", f"`{machine}`", "", f"`{bench.facts.get('command')}`", ""]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """Under ``HEADINGS``."""
    found = row.speedup
    has_interval = found.low is not None and found.high is not None
    return [
        row.variant,
        row.what,
        _ms(row.dense_s),
        _ms(row.variant_s),
        f"{found.ratio:.3f}×",
        f"{found.low:.2f} to {found.high:.2f}" if has_interval else "",
        f"{row.ideal:.3f}×" if row.ideal is not None else "",
        found.verdict.value,
    ]


def reasons(rows: Sequence[Row]) -> list[str]:
    """Why each verdict is what it is."""
    return [
        f"{row.variant}, {row.what}: {row.speedup.verdict}: {row.speedup.reason}" for row in rows
    ]


def _removed(blocks: Sequence[int]) -> str:
    return f"without blocks {', '.join(map(str, blocks))}" if blocks else "the dense model again"


def _usage(side: str, runs: Sequence[Sample]) -> list[str]:
    peaks = [its.peak_memory_bytes for its in runs if its.peak_memory_bytes is not None]
    energies = [its.energy_j / its.num_tokens for its in runs if its.energy_j is not None]
    return [
        side,
        f"{sum(its.num_tokens for its in runs) / sum(its.seconds for its in runs):,.1f}",
        f"{max(peaks) / 2**30:.2f} GiB" if peaks else "not a GPU",
        f"{fmean(energies):.3f} J" if energies else "not known",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], num_left: int) -> list[str]:
    rule = ["---"] * num_left + ["--:"] * (len(headings) - num_left)
    return [f"| {' | '.join(row)} |" for row in (headings, rule, *rows)]


if TYPE_CHECKING:  # importing matplotlib looks for fonts and writes a cache: only for a picture
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_FILE = "bench.png"
_WIDTH, _ROW, _HEAD, _GAP, _FOOT = 9.0, 0.34, 0.45, 0.62, 0.4  # inches
_LEFT, _RIGHT = 3.4, 1.25

# The palette of Okabe and Ito, for every kind of eye; markers tell the same.
_LOOKS = {
    Verdict.FASTER: ("#0072B2", "o"),
    Verdict.SLOWER: ("#C44E00", "v"),
    Verdict.NO_DIFFERENCE: ("#222222", "s"),
    Verdict.UNDECIDED: ("#909090", "o"),
}


def plot(bench: Bench) -> bytes:
    """A PNG; needs no display, and leaves no setting changed."""
    from matplotlib import style  # noqa: PLC0415 - as said above

    buffer = BytesIO()
    with style.context(["default", dict(STYLE)]):  # whatever the user's own style may be
        draw(bench).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw(bench: Bench) -> "Figure":
    """The figure behind ``plot``: axes for each scenario, from top to bottom."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - as said above

    rows = bench.rows()
    by_scenario = {its: [row for row in rows if row.scenario is its] for its in bench.samples}
    heights = {its: _ROW * len(found) + _GAP for its, found in by_scenario.items()}
    height = _HEAD + sum(heights.values()) + _FOOT
    figure = Figure(figsize=(_WIDTH, height))
    title = f"{_short(bench.subject.name)}: speed-up over the dense model"
    figure.text(0.2 / _WIDTH, 1 - 0.15 / height, title, size=13, weight="bold", va="top")
    words = f"ratio of mean times and its 95 % interval, {bench.plan.repeats} repeats"
    figure.text(0.2 / _WIDTH, 1 - 0.42 / height, words, size=10, va="top")
    limits, top = _limits(rows), height - _HEAD
    for scenario, found in by_scenario.items():
        bottom = top - heights[scenario]
        inches = _LEFT, bottom, _WIDTH - _LEFT - _RIGHT, heights[scenario] - _GAP
        left, low, width, tall = inches
        axes = figure.add_axes((left / _WIDTH, low / height, width / _WIDTH, tall / height))
        _draw(axes, scenario, bench, found)
        axes.set_xlim(*limits)
        top = bottom
    return figure


def _draw(axes: "Axes", scenario: Scenario, bench: Bench, rows: list[Row]) -> None:
    axes.axvline(1, color="#909090", lw=1, zorder=1)
    for place, row in enumerate(rows):
        found = row.speedup
        color, marker = _LOOKS[found.verdict]
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [place, place], "-", color=color, lw=2.2, zorder=3)
        face = "white" if found.verdict is Verdict.UNDECIDED else color
        axes.plot(found.ratio, place, marker, color=color, mfc=face, ms=7, zorder=4)
        if row.ideal is not None:
            axes.plot(row.ideal, place, "|", color="#009E73", ms=15, mew=2.2, zorder=2)
        axes.annotate(
            found.verdict.value,
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            size=9,
            color=color,
        )
    axes.set_yticks(range(len(rows)), [f"{row.variant}, {row.what}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    text = f"{scenario}: {bench.plan.described(scenario)}; green: ideal"
    axes.set_title(text, loc="left", size=9)


def _limits(rows: list[Row]) -> tuple[float, float]:
    values = [1.0]
    for row in rows:
        values += [its for its in (row.speedup.ratio, row.speedup.low, row.speedup.high) if its]
        values += [row.ideal] if row.ideal is not None else []
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1
    return low - room, high + room


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"…{name[-39:]}"
