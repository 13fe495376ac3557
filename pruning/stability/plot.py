"""The stability report as a plot: the removals of each run, the overlap of runs after each removal,
and the range of perplexity.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from pruning.checkpoints.trajectory import CEILING
from pruning.checkpoints.trajectory_plot import STYLE, compact, log_ticks
from pruning.plural import counted
from pruning.stability.agreement import Stability

if TYPE_CHECKING:  # matplotlib is imported late: it looks for fonts and writes a cache
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_FILE = "stability.png"
_LEFT, _RIGHT, _TOP = 2.3, 0.2, 0.75  # inches
_CELL_WIDTH, _ROW_HEIGHT, _BARS_HEIGHT = 0.24, 0.27, 0.75
_PANELS_HEIGHT, _BELOW = 2.5, 0.6
_MAX_NAME_LENGTH = 30

# The colour-blind safe palette of Okabe and Ito.
_COLORS = ("#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#E69F00")
_REMOVED, _KEPT, _GREY = (0.77, 0.31, 0.0), "#EDF3F8", "#707070"


def plot(report: Stability) -> bytes:
    """Return a PNG, the same bytes for equal reports. Needs no display, changes no settings."""
    from matplotlib import style  # noqa: PLC0415 - as above

    buffer = BytesIO()
    with style.context(["default", dict(STYLE)]):  # and not the user's own style
        draw(report).savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw(report: Stability) -> "Figure":
    """Draw the figure of ``plot``: axes are bars, runs, overlap and perplexity, in this order."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    rows = len(report.runs) * _ROW_HEIGHT
    width = max(9.0, _LEFT + _RIGHT + report.num_blocks * _CELL_WIDTH)
    panels_top = _BELOW + _PANELS_HEIGHT
    runs_bottom = panels_top + 0.95
    height = runs_bottom + rows + _BARS_HEIGHT + 0.1 + _TOP
    figure = Figure(figsize=(width, height))

    def axes(left: float, bottom: float, right: float, top: float) -> "Axes":
        box = left / width, bottom / height, (right - left) / width, (top - bottom) / height
        return figure.add_axes(box)

    title, result = _titles(report)
    figure.text(0.2 / width, 1 - 0.15 / height, title, size=13, weight="bold", va="top")
    figure.text(0.2 / width, 1 - 0.43 / height, result, size=11, va="top")
    end, bars_bottom = width - _RIGHT, runs_bottom + rows + 0.1
    _draw_bars(axes(_LEFT, bars_bottom, end, bars_bottom + _BARS_HEIGHT), report)
    _draw_runs(axes(_LEFT, runs_bottom, end, runs_bottom + rows), report)
    middle = width / 2
    _draw_overlap(axes(0.75, _BELOW, middle - 0.25, panels_top), report)
    _draw_perplexity(axes(middle + 0.65, _BELOW, end, panels_top), report)
    return figure


def _titles(report: Stability) -> tuple[str, str]:
    last, name = report.depths[-1], _short(report.model, 40)
    noise = "within" if report.is_choice_in_noise else "outside"
    num_runs, wanted = len(report.runs), last.num_removed
    searches = counted(num_runs, "search", "searches")
    title = f"{name}: {searches} for {wanted} of {report.num_blocks} blocks"
    shared = f"{len(last.shared_by_all)} of {wanted} were removed in every run"
    return title, f"Stability of the result: the choice is {noise} the noise; {shared}"


def _draw_bars(axes: "Axes", report: Stability) -> None:
    shares = {one.block: one.num_runs / len(report.runs) for one in report.picked}
    axes.bar(list(shares), list(shares.values()), 0.8, color=_REMOVED)
    axes.set_xlim(-0.5, report.num_blocks - 0.5)
    axes.set_ylim(0, 1)
    axes.set_yticks([0, 0.5, 1], ["0", "½", "all"])
    axes.set_xticks([])
    axes.grid(visible=False, axis="x")
    axes.set_ylabel("share of runs", rotation=0, ha="right", va="center")


def _draw_runs(axes: "Axes", report: Stability) -> None:
    num_steps = report.depths[-1].num_removed
    for row, run in enumerate(report.runs):
        bottom = len(report.runs) - row - 0.9
        axes.bar(range(report.num_blocks), 0.8, 0.9, bottom, color=_KEPT)
        for step, block in enumerate(run.order, start=1):
            strength = 1 - 0.75 * (step - 1) / max(1, num_steps - 1)
            axes.bar([block], 0.8, 0.9, bottom, color=_towards_white(_REMOVED, strength))
            ink = "white" if strength > 0.7 else "black"
            look: dict[str, Any] = {"ha": "center", "va": "center", "size": 8, "color": ink}
            axes.text(block, bottom + 0.37, str(step), look)
    axes.set_xlim(-0.5, report.num_blocks - 0.5)
    axes.set_ylim(0, len(report.runs))
    names = [_short(run.name, _MAX_NAME_LENGTH) for run in report.runs]
    axes.set_yticks([len(names) - row - 0.5 for row in range(len(names))], names, size=9)
    axes.set_xticks(range(0, report.num_blocks, 1 if report.num_blocks <= 32 else 2))
    axes.tick_params(length=0, labelsize=8)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("block; a number is the position in the removal order")


def _draw_overlap(axes: "Axes", report: Stability) -> None:
    steps = [depth.num_removed for depth in report.depths]
    mean: Mapping[str, Any] = {"color": _COLORS[0], "lw": 2.2, "marker": "o", "ms": 5}
    curves: Sequence[tuple[str, list[float | None], Mapping[str, Any]]] = (
        ("mean", [depth.overlap for depth in report.depths], mean),
        ("lowest", [d.lowest_overlap for d in report.depths], {"color": _GREY, "ls": "--"}),
        ("by chance", [d.overlap_by_chance for d in report.depths], {"color": _GREY, "ls": ":"}),
    )
    for label, values, look in curves:
        known = [(at, value) for at, value in zip(steps, values, strict=True) if value is not None]
        if known:
            axes.plot(*zip(*known, strict=True), label=label, **look)
    axes.set_ylim(-0.03, 1.04)
    _label_steps(axes, steps)
    axes.set_ylabel("overlap of two runs")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3)


def _draw_perplexity(axes: "Axes", report: Stability) -> None:
    steps = [0, *(depth.num_removed for depth in report.depths)]
    everything: list[float] = []
    for number, (text, dense) in enumerate(report.dense_perplexities.items()):
        color = _COLORS[number % len(_COLORS)]
        spreads = [depth.perplexities[text] for depth in report.depths]
        low, middle, high = (
            [min(CEILING, value) for value in (dense, *values)]
            for values in (
                [spread.lowest for spread in spreads],
                [spread.median for spread in spreads],
                [spread.highest for spread in spreads],
            )
        )
        axes.fill_between(steps, low, high, color=color, alpha=0.25, lw=0)
        axes.plot(steps, middle, "o-", color=color, lw=1.8, ms=4, label=_short(text, 20))
        everything += [*low, *high]
    if max(everything) > 10 * min(everything):
        axes.set_yscale("log")
        axes.set_yticks(log_ticks(min(everything), max(everything)))
        axes.minorticks_off()
    axes.yaxis.set_major_formatter(compact)
    _label_steps(axes, steps)
    axes.set_ylabel("perplexity, held-out")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3)


def _label_steps(axes: "Axes", steps: Sequence[int]) -> None:
    axes.set_xticks(steps[:: -(-len(steps) // 16)])
    axes.set_xlabel("blocks removed")


def _towards_white(color: tuple[float, float, float], strength: float) -> tuple[float, ...]:
    return tuple(1 - strength * (1 - part) for part in color)


def _short(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"…{text[1 - max_length :]}"
