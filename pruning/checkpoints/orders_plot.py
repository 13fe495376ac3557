"""Several removal orders in one plot: a panel for each text, a curve for each checkpoint.

Only checkpoints that were measured on the same windows of a text share its panel.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pruning.checkpoints.domain_panels import (
    MAX_PANELS,
    draw_intervals,
    grid,
    limited_ratio,
    name_speeds,
    name_text,
)
from pruning.checkpoints.store import Manifest
from pruning.checkpoints.trajectory import predicted_speedups
from pruning.checkpoints.trajectory_plot import png, scale
from pruning.evaluation.quality import DomainQuality

if TYPE_CHECKING:  # matplotlib is imported late: it looks for fonts and writes a cache
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ORDERS = 8  # colours that can be told apart
_PANEL_WIDTH, _PANEL_HEIGHT = 4.2, 3.4  # inches
_HEAD, _NAME_HEIGHT = 0.75, 0.22  # inches
# The palette of Okabe and Ito, without yellow; the markers differ as well
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222", "#909090")
_MARKERS = "osv^D*Px"

Panel = dict[str, DomainQuality]  # by the name of the checkpoint


class NothingToPlot(ValueError):
    """No checkpoint has curves."""


def panels(manifests: Sequence[Manifest]) -> list[Panel]:
    """Checkpoints by the windows of text that they were measured on."""
    by_text: dict[str, Panel] = {}
    for manifest in manifests:
        for domain in manifest.quality.domains:
            by_text.setdefault(domain.digest, {})[manifest.name] = domain
    return list(by_text.values())


def plot_orders(manifests: Sequence[Manifest]) -> bytes:
    """A PNG of up to ``MAX_ORDERS`` checkpoints of one model. Raises ``NothingToPlot``."""
    return png(lambda: draw_orders(manifests))


def draw_orders(manifests: Sequence[Manifest]) -> "Figure":
    """The figure of ``plot_orders``, with axes for each text."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - as above

    shown, texts = manifests[:MAX_ORDERS], panels(manifests[:MAX_ORDERS])[:MAX_PANELS]
    if not texts:
        raise NothingToPlot(
            "no checkpoint has perplexities by domain: prune again without --no-evaluate"
        )
    num_rows, num_columns = grid(len(texts))
    head = _HEAD + _NAME_HEIGHT * len(shown)
    width, height = 0.9 + _PANEL_WIDTH * num_columns, head + 0.4 + _PANEL_HEIGHT * num_rows
    figure = Figure(figsize=(width, height))
    title = f"{shown[0].parent}: perplexity by number of removed blocks"
    figure.text(0.2 / width, 1 - 0.15 / height, title, size=13, weight="bold", va="top")
    look = {manifest.name: number for number, manifest in enumerate(shown)}
    speedups = max((predicted_speedups(manifest) for manifest in shown), key=len)
    drawn: list[float] = []
    for at, panel in enumerate(texts):
        row, column = divmod(at, num_columns)
        left, top = 0.8 + column * _PANEL_WIDTH, height - head - 0.6 - row * _PANEL_HEIGHT
        tall = _PANEL_HEIGHT - 1.4
        box = (left / width, (top - tall) / height, (_PANEL_WIDTH - 0.5) / width, tall / height)
        drawn += _draw_panel(figure.add_axes(box), panel, look, speedups)
    for at, axes in enumerate(figure.axes):
        scale(axes, drawn, "perplexity, × dense")  # one for all
        if at % num_columns:
            axes.set_ylabel("")
            axes.tick_params(labelleft=False)
    _name_curves(figure)
    return figure


def _name_curves(figure: "Figure") -> None:
    """Below the title, each checkpoint once."""
    handles = {
        label: handle
        for axes in figure.axes
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    corner = 0.2 / figure.get_figwidth(), 1 - 0.42 / figure.get_figheight()
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="upper left",
        bbox_to_anchor=corner,
        title="bars: 95 % intervals",
        alignment="left",
        fontsize=9,
    )


def _draw_panel(
    axes: "Axes", panel: Panel, look: Mapping[str, int], speedups: Sequence[float]
) -> list[float]:
    """The curves of the models as they are served, with their intervals. Returns all values.

    A checkpoint that was healed at its full depth is one point: there is no model of fewer
    removals.
    """
    drawn: list[float] = []
    for name, domain in panel.items():
        number, deepest = look[name], len(domain.raw)
        first = 0 if all(domain.healed) else deepest
        depths = range(first, deepest + 1)
        points = [limited_ratio(domain.ratio(domain.served_after(depth))) for depth in depths]
        style = {"color": _COLORS[number], "marker": _MARKERS[number], "ms": 4.5, "lw": 1.6}
        draw_intervals(axes, points, first + 0.06 * number, name, style)
        drawn += [value for point in points for value in point]
    name_text(axes, next(iter(panel.values())))
    deepest = max(len(domain.raw) for domain in panel.values())
    steps_shown = range(0, deepest + 1, math.ceil((deepest + 1) / 12))
    name_speeds(axes, steps_shown, [str(step) for step in steps_shown], speedups)
    return drawn
