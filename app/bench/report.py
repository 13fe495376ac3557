"""The report of ``sleb bench``: Markdown, the cells of its tables, and a plot of the speed-ups."""

from collections.abc import Sequence
from io import BytesIO
from statistics import fmean
from typing import TYPE_CHECKING

from app.bench.plan import AGAIN, DENSE, BenchSubject, Scenario
from app.bench.result import Bench, Row
from app.bench.runs import Sample
from app.compare.speedup import EQUAL_WITHIN, Speedup, Verdict
from pruning.checkpoints.trajectory_plot import STYLE
from pruning.plural import counted

if TYPE_CHECKING:  # importing matplotlib searches fonts and writes a cache: only for a plot
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADINGS = ("side", "what", "dense", "variant", "speed-up", "interval", "ideal", "verdict")
PLOT_FILE = "bench.png"

_METHOD = """\
Dense model and variants took turns, each first equally often, on the same prompts with answers of
fixed lengths, after a short run of each that was not measured. Prompts were read {reading}. A
speed-up is a ratio of mean times over {repeats}, with its 95 % interval. It has a verdict only if
the interval is no wider than the effect, or lies within {equal:.0%} of 1. `{again}` is the control:
the dense model a second time, whose true speed-up is 1. A speed-up whose interval overlaps that of
the control has no verdict, nor has one of other kernels than those of the dense model. The ideal is
the speed-up of a forward pass that consists of embeddings, blocks and head only.
"""

# Sizes in inches: the plot, a row, the head, the gap above a scenario, the foot, the margins.
_WIDTH, _ROW, _HEAD, _GAP, _FOOT = 10.8, 0.38, 0.45, 0.62, 0.4
_LEFT, _RIGHT = 3.4, 3.05

# The palette of Okabe and Ito, which colour-blind readers can distinguish; so do the markers.
_STYLES = {
    Verdict.FASTER: ("#0072B2", "o"),
    Verdict.SLOWER: ("#C44E00", "v"),
    Verdict.NO_DIFFERENCE: ("#222222", "s"),
    Verdict.UNDECIDED: ("#909090", "o"),
}


def markdown(bench: Bench) -> str:
    """The whole report."""
    subject, plan = bench.subject, bench.plan
    repeats = counted(plan.repeats, "repeat")
    method = _METHOD.format(
        repeats=repeats, equal=EQUAL_WITHIN, again=AGAIN, reading=bench.prompt_reading
    )
    lines = [f"# {subject.name}: speed-up of pruned variants", "", method]
    lines += [f"- `{name}`: {_variant(subject, name)}" for name in subject.removed]
    for scenario, samples in bench.samples.items():
        rows = [row for row in bench.rows() if row.scenario is scenario]
        lines += ["", f"## {scenario.capitalize()}: {plan.description(scenario)}", ""]
        lines += _table(HEADINGS, [cells(row) for row in rows], num_left=2)
        lines += ["", *(f"- {reason}" for reason in reasons(rows)), ""]
        headings = ("side", "tokens per second", "peak GPU memory", "energy per token")
        shown = {DENSE, AGAIN, *subject.removed}
        sides = {side: runs for side, runs in samples.items() if side in shown}
        lines += _table(headings, [_usage(side, runs) for side, runs in sides.items()], num_left=1)
    machine = bench.facts.get("machine")
    facts = (bench.facts.get("engine"), machine, bench.facts.get("command"))
    lines += ["", "## Engine and machine", "", *(f"`{fact}`\n" for fact in facts)]
    return "\n".join(lines)


def cells(row: Row) -> list[str]:
    """The cells under ``HEADINGS``."""
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


def summary(row: Row) -> str:
    """The speed-up of a row in words, with its interval and its verdict."""
    variant, what, _, _, ratio, ends, _, verdict = cells(row)
    return f"{row.scenario}, {variant}, {what}: {ratio}{ends and f' ({ends})'}, {verdict}"


def reasons(rows: Sequence[Row]) -> list[str]:
    """The reason of each verdict."""
    return [
        f"{row.variant}, {row.what}: {row.speedup.verdict}: {row.speedup.reason}" for row in rows
    ]


def _variant(subject: BenchSubject, name: str) -> str:
    blocks, repaired = subject.removed[name], subject.repairs.get(name)
    int8 = " with int8 weights" if name in subject.int8 else ""
    if not blocks:
        return f"the dense model{int8}"
    how = f"repaired by {repaired.method}" if repaired else "not repaired"
    return f"without blocks {', '.join(map(str, blocks))}, {how}{int8 and f',{int8}'}"


def _usage(side: str, runs: Sequence[Sample]) -> list[str]:
    peaks = [run.peak_memory_bytes for run in runs if run.peak_memory_bytes is not None]
    energies = [run.energy_j / run.num_tokens for run in runs if run.energy_j is not None]
    return [
        side,
        f"{sum(run.num_tokens for run in runs) / sum(run.seconds for run in runs):,.1f}",
        f"{max(peaks) / 2**30:.2f} GiB" if peaks else "not a GPU",
        f"{fmean(energies):.3f} J" if energies else "not known",
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], num_left: int) -> list[str]:
    rule = ["---"] * num_left + ["--:"] * (len(headings) - num_left)
    return [f"| {' | '.join(row)} |" for row in (headings, rule, *rows)]


def plot(bench: Bench) -> bytes:
    """A PNG. Needs no display and changes no setting of matplotlib."""
    from matplotlib import style  # noqa: PLC0415 - slow to import

    buffer = BytesIO()
    with style.context(["default", dict(STYLE)]):  # not the user's own style
        draw(bench).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw(bench: Bench) -> "Figure":
    """The figure of ``plot``, with axes for each scenario from top to bottom."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    rows = bench.rows()
    by_scenario = {
        scenario: [row for row in rows if row.scenario is scenario] for scenario in bench.samples
    }
    heights = {scenario: _ROW * len(found) + _GAP for scenario, found in by_scenario.items()}
    height = _HEAD + sum(heights.values()) + _FOOT
    figure = Figure(figsize=(_WIDTH, height))
    title = f"{_short(bench.subject.name)}: speed-up over the dense model"
    figure.text(0.2 / _WIDTH, 1 - 0.15 / height, title, size=13, weight="bold", va="top")
    subtitle = f"ratio of mean times and its 95 % interval, {counted(bench.plan.repeats, 'repeat')}"
    figure.text(0.2 / _WIDTH, 1 - 0.42 / height, subtitle, size=10, va="top")
    limits, top = _limits(rows), height - _HEAD
    for scenario, found in by_scenario.items():
        bottom = top - heights[scenario]
        width, tall = _WIDTH - _LEFT - _RIGHT, heights[scenario] - _GAP
        axes = figure.add_axes((_LEFT / _WIDTH, bottom / height, width / _WIDTH, tall / height))
        _draw(axes, scenario, bench, found)
        axes.set_xlim(*limits)
        top = bottom
    return figure


def _draw(axes: "Axes", scenario: Scenario, bench: Bench, rows: list[Row]) -> None:
    axes.axvline(1, color="#909090", lw=1, zorder=1)
    for y, row in enumerate(rows):
        found = row.speedup
        color, marker = _STYLES[found.verdict]
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [y, y], "-", color=color, lw=2.2, zorder=3)
        face = "white" if found.verdict is Verdict.UNDECIDED else color
        axes.plot(found.ratio, y, marker, color=color, mfc=face, ms=7, zorder=4)
        if row.ideal is not None:
            axes.plot(row.ideal, y, "|", color="#009E73", ms=15, mew=2.2, zorder=2)
        _annotate(axes, y, found, color)
    axes.set_yticks(range(len(rows)), [f"{row.variant}, {row.what}" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    text = f"{scenario}: {bench.plan.description(scenario)}; green: ideal"
    axes.set_title(text, loc="left", size=9)


def _annotate(axes: "Axes", y: int, found: Speedup, color: str) -> None:
    """The verdict at the right of the row, and below it the reason if there is none."""
    is_undecided = found.verdict is Verdict.UNDECIDED
    reason = found.reason.partition(": ")[0].removeprefix("the 95 % ") if is_undecided else ""
    for text, size, shift in ((found.verdict.value, 9, 5 if reason else 0), (reason, 7, -5)):
        axes.annotate(
            text,
            (1.01, y),
            xytext=(0, shift),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            size=size,
            color=color,
        )


def _limits(rows: list[Row]) -> tuple[float, float]:
    values = [1.0]
    for row in rows:
        ends = (row.speedup.ratio, row.speedup.low, row.speedup.high)
        values += [end for end in ends if end is not None]  # the low end may be 0
        values += [row.ideal] if row.ideal is not None else []
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 0.1
    return low - margin, high + margin


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"…{name[-39:]}"
