"""The trajectory as a plot: perplexity by number of removed blocks, and a map of all blocks."""

import math
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pruning.checkpoints.domain_panels import (
    MAX_PANELS,
    draw_panel,
    drawn_values,
    grid,
)
from pruning.checkpoints.store import Manifest
from pruning.checkpoints.trajectory import (
    CEILING,
    calibration_perplexities,
    predicted_speedups,
    short,
)
from pruning.evaluation.quality import DomainQuality
from pruning.extras import has_extra
from pruning.spec.prune import PruneSpec

if TYPE_CHECKING:  # matplotlib is imported late: it looks for fonts and writes a cache
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOT_FILE = "trajectory.png"
DPI = 160
CELLS_PER_ROW = 40
_WIDTH, _CURVE_HEIGHT, _ROW_HEIGHT = 9.0, 4.4, 0.42  # inches
_HEAD, _PANEL_HEIGHT = 0.7, 3.25  # inches, of the titles and of a row of panels
_MIN_COLUMNS = 24  # of the map, so that cells of a small model are not wide
_CROWDED = 32  # with more points, labels are rotated

# Based on the colour-blind safe palette of Okabe and Ito. Line styles and hatches differ as well.
_HELD_OUT, _REMOVED, _GREY = "#0072B2", "#C44E00", "#707070"
_INK = "#222222"
_CELL_COLORS: Mapping[str, str] = {
    "removed, in this order": _REMOVED,
    "kept": "#D6E6F2",
    "protected": "#A9A9A9",
}
STYLE: Mapping[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _GREY,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": "#E6E6E6",
    "hatch.linewidth": 0.8,
    "legend.borderaxespad": 0,
    "legend.borderpad": 0,
    "legend.columnspacing": 1.5,
    "legend.frameon": False,
    "savefig.dpi": DPI,
    "text.color": _INK,
    "text.parse_math": False,  # a model's name may contain a dollar sign
}


def write_plot(manifest: Manifest, directory: Path) -> None:
    """Write the plot into the directory; a checkpoint has none without the extra ``plots``."""
    if has_extra("plots"):
        (directory / PLOT_FILE).write_bytes(plot(manifest))


def plot(manifest: Manifest) -> bytes:
    """Return a PNG, the same bytes for equal manifests."""
    return png(lambda: draw(manifest))


def png(drawn: "Callable[[], Figure]") -> bytes:
    """The picture in the style of this project. Needs no display, changes no settings."""
    from matplotlib import style  # noqa: PLC0415 - as above

    buffer = BytesIO()
    with style.context(["default", dict(STYLE)]):  # and not the user's own style
        drawn().savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def draw(manifest: Manifest) -> "Figure":
    """Draw the figure of ``plot``: its last axes contain the map, those before it the curves.

    There is a panel for each domain, or one curve if no domain was measured.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    map_rows = math.ceil(manifest.num_blocks / CELLS_PER_ROW)
    domains = manifest.quality.domains[:MAX_PANELS]
    curve_height = _HEAD + grid(len(domains))[0] * _PANEL_HEIGHT if domains else _CURVE_HEIGHT
    height = curve_height + map_rows * _ROW_HEIGHT + 0.37
    figure = Figure(figsize=(_WIDTH, height))
    title, result = _titles(manifest)
    figure.text(0.2 / _WIDTH, 1 - 0.15 / height, title, size=13, weight="bold", va="top")
    figure.text(0.2 / _WIDTH, 1 - 0.42 / height, result, size=11, va="top")
    if domains:
        _draw_panels(figure, domains, manifest)
    else:
        bottom = height - _CURVE_HEIGHT + 0.55
        _draw_curve(_axes(figure, 0.85, bottom, _WIDTH - 1.05, height - 1.02), manifest)
    top = 0.06 + map_rows * _ROW_HEIGHT
    _draw_map(_axes(figure, 0.2, 0.06, _WIDTH - 0.4, top), manifest, map_rows)
    return figure


def _axes(figure: "Figure", left: float, bottom: float, width: float, top: float) -> "Axes":
    """Axes at a place in inches."""
    height = float(figure.get_figheight())
    box = left / _WIDTH, bottom / height, width / _WIDTH, (top - bottom) / height
    return figure.add_axes(box)


def _draw_panels(figure: "Figure", domains: Sequence[DomainQuality], manifest: Manifest) -> None:
    _, num_columns = grid(len(domains))
    width, values = (_WIDTH - 0.8) / num_columns, drawn_values(domains)
    for at, domain in enumerate(domains):
        row, column = divmod(at, num_columns)
        left = 0.75 + column * width
        top = figure.get_figheight() - _HEAD - row * _PANEL_HEIGHT
        panel = _axes(figure, left, top - _PANEL_HEIGHT + 0.8, width - 0.2, top - 0.6)
        draw_panel(panel, domain, manifest.removed_blocks, predicted_speedups(manifest))
        scale(panel, values, "perplexity, × dense")
        if column:
            panel.set_ylabel("")
            panel.tick_params(labelleft=False)
    # the panel with most curves names them all
    named = max(
        (panel.get_legend_handles_labels() for panel in figure.axes), key=lambda n: len(n[1])
    )
    corner = 1 - 0.2 / _WIDTH, 1 - 0.12 / figure.get_figheight()
    figure.legend(
        *named, loc="upper right", bbox_to_anchor=corner, title="bars: 95 % intervals", fontsize=9
    )


def _titles(manifest: Manifest) -> tuple[str, str]:
    name = manifest.parent if len(manifest.parent) <= 40 else f"…{manifest.parent[-39:]}"
    quality, num_removed = manifest.quality, len(manifest.removed_blocks)
    healed = "" if manifest.healing is None else ", healed"
    title = f"{name} without {num_removed} of its {manifest.num_blocks} blocks{healed}"
    if quality.domains:
        worst = max(quality.domains, key=lambda one: one.ratio(one.served_after(num_removed)).value)
        served = worst.served_after(num_removed)
        values, text = [worst.dense.perplexity, served.perplexity], f"{worst.domain} (the worst)"
    else:
        values = [*(quality.perplexities or calibration_perplexities(manifest))]
        text = "held-out text" if quality.perplexities else "calibration text"
    cost = f"{short(values[0])} → {short(values[-1])}, {short(values[-1] / values[0])} × dense"
    return title, f"perplexity on {text} {cost}"


def _draw_curve(axes: "Axes", manifest: Manifest) -> None:
    calibration = _drawn(calibration_perplexities(manifest))
    held_out = _drawn(manifest.quality.perplexities)
    main = held_out or calibration
    steps = range(len(main))
    labels = ["held-out text"] * bool(held_out) + ["calibration text, exp(loss)"]
    axes.plot(steps, main, "-o", color=_HELD_OUT, lw=2.2, ms=5, label=labels[0], zorder=3)
    if held_out:
        axes.plot(steps, calibration, "--", color=_GREY, lw=1, label=labels[1])
    if beyond := [step for step in steps if main[step] == CEILING]:
        line, label = [CEILING] * len(beyond), f"above {CEILING:,.0f}"
        axes.plot(beyond, line, "^", color=_INK, ms=9, label=label, zorder=4)
    is_below = bool(held_out) and sum(calibration) > sum(held_out)
    _label_points(axes, manifest.removed_blocks, main[1:], is_below=is_below)
    scale(axes, [*calibration, *held_out], "perplexity")
    axes.set_xlim(-0.5, len(main) - 0.5)
    axes.set_xticks(steps[:: math.ceil(len(main) / 25)])
    axes.set_xlabel("number of removed blocks; each point is labelled with the removed block")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.03), ncols=3)


def _label_points(
    axes: "Axes", blocks: Sequence[int], values: Sequence[float], *, is_below: bool
) -> None:
    """Label the points on the side that is free of the other curve."""
    away = -1 if is_below else 1
    sideways: Mapping[str, Any] = {"ha": "left" if is_below else "right", "size": 9}
    upright: Mapping[str, Any] = {"ha": "center", "size": 7, "rotation": 90}
    is_crowded = len(blocks) > _CROWDED
    for step, (block, value) in enumerate(zip(blocks, values, strict=True), start=1):
        axes.annotate(
            str(block),
            (step, value),
            xytext=(0 if is_crowded else -3 * away, 5 * away),
            textcoords="offset points",
            va="top" if is_below else "bottom",
            color=_REMOVED,
            weight="bold",
            zorder=5,
            **(upright if is_crowded else sideways),
        )


def scale(axes: "Axes", values: Sequence[float], name: str) -> None:
    """Leave room for the labels, and use a logarithmic scale from a ratio of 10 on."""
    low, high = min(values), max(values)
    if high / low <= 10:
        room = 0.12 * (high - low) or 0.1 * high
        axes.set_ylim(low - room, high + room)
        axes.set_ylabel(name)
    else:
        room = (high / low) ** 0.1
        axes.set_yscale("log")
        axes.set_ylim(low / room, high * room)
        axes.set_yticks(log_ticks(low / room, high * room))
        axes.minorticks_off()
        axes.set_ylabel(f"{name}, logarithmic")
    axes.yaxis.set_major_formatter(compact)


def compact(value: float, _position: object = None) -> str:
    for factor, letter in ((1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:g}{letter}"
    return f"{value:g}"


def log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten in this range, over few decades also twice and five times them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 4 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def _draw_map(axes: "Axes", manifest: Manifest, num_rows: int) -> None:
    num_columns = math.ceil(manifest.num_blocks / num_rows)
    order = {block: step for step, block in enumerate(manifest.removed_blocks, start=1)}
    for kind, blocks in _kinds(manifest).items():
        columns = [block % num_columns for block in blocks]
        bottoms = [num_rows - block // num_columns - 0.68 for block in blocks]
        color = _CELL_COLORS[kind]
        hatch = "////" if kind == "protected" else ""
        axes.bar(columns, 0.62, 0.92, bottoms, color=color, hatch=hatch, ec="white", label=kind)
        for block, column, bottom in zip(blocks, columns, bottoms, strict=True):
            look: dict[str, Any] = {"ha": "center", "size": 7, "va": "top", "color": _GREY}
            if block in order:
                look |= {"weight": "bold", "color": _REMOVED}
                inside = {**look, "size": 9, "va": "center", "color": "white"}
                axes.text(column, bottom + 0.3, str(order[block]), inside)
            axes.text(column, bottom - 0.03, str(block), look)
    axes.set_xlim(-0.5, max(num_columns, _MIN_COLUMNS) - 0.5)
    axes.set_ylim(0, num_rows)
    axes.set_axis_off()
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.02), ncols=3)


def _kinds(manifest: Manifest) -> dict[str, list[int]]:
    """Return the blocks of each kind, without kinds that have none."""
    spec = PruneSpec.from_dict(manifest.spec)
    candidates = range(spec.protect_first, manifest.num_blocks - spec.protect_last)
    blocks: dict[str, list[int]] = {kind: [] for kind in _CELL_COLORS}
    for block in range(manifest.num_blocks):
        if block in manifest.removed_blocks:
            blocks["removed, in this order"].append(block)
        else:
            blocks["kept" if block in candidates else "protected"].append(block)
    return {kind: members for kind, members in blocks.items() if members}


def _drawn(perplexities: Sequence[float]) -> list[float]:
    """Replace values above the ceiling, and NaN, by the ceiling."""
    return [min(CEILING, value) for value in perplexities]  # min(x, NaN) is x
