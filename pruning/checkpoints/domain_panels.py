"""The panels of the trajectory plot: a domain each, pruned and repaired against the dense model.

All panels have one scale, the perplexity divided by that of the dense model on the same windows.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pruning.checkpoints.trajectory import CEILING, short
from pruning.evaluation.quality import DomainQuality, Interval, Measured
from pruning.plural import counted

if TYPE_CHECKING:  # matplotlib is imported late: it looks for fonts and writes a cache
    from matplotlib.axes import Axes

MAX_PANELS = 9
_MAX_NAMED = 10  # removals; with more, their blocks are not named at the ticks
_MAX_TICKS = 9
_MAX_SPEEDS = 6  # speed-ups, which are wider than numbers of blocks
_MAX_SOURCE = 44  # characters of the name of a text
# Based on the colour-blind safe palette of Okabe and Ito; line styles and markers differ as well
_STYLES: Mapping[str, Mapping[str, Any]] = {
    "pruned": {"color": "#C44E00", "ls": "--", "marker": "s", "ms": 4, "lw": 1.4},
    "repaired": {"color": "#0072B2", "ls": "-", "marker": "o", "ms": 4.5, "lw": 2},
    "healed": {"color": "#007A57", "ls": "-", "marker": "D", "ms": 5.5, "lw": 1.4},
}
# Where the perplexity at the end of a curve is written, so that no two overlap
_BESIDE: Mapping[str, Mapping[str, Any]] = {
    "pruned": {"xytext": (5, 3), "va": "bottom"},
    "repaired": {"xytext": (12, -3), "va": "top"},  # behind the point of a healed model
    "healed": {"xytext": (5, -13), "va": "top"},  # below the perplexity of the repaired one
}


@dataclass(frozen=True)
class Curve:
    """Perplexities after 0, 1, 2 ... removals, divided by the dense one: low end, value, high end.

    ``perplexity`` is the last one itself, and ``first`` the number of removals of the first point.
    """

    label: str
    points: tuple[tuple[float, float, float], ...]
    perplexity: float
    first: int = 0


def curves(domain: DomainQuality) -> Iterator[Curve]:
    """The pruned model, the repaired one if there is any, and the healed one where it was trained.

    Healed at all depths it is a line, and else a point: no model of fewer removals was made.
    """
    yield _curve("pruned", domain, domain.raw_after)
    if any(domain.repaired):
        yield _curve("repaired", domain, domain.unhealed_after)
    if all(domain.healed) and domain.healed:
        yield _curve("healed", domain, domain.served_after)
    elif (healed := domain.healed_after(len(domain.raw))) is not None:
        point = limited_ratio(domain.ratio(healed))
        yield Curve("healed", (point,), healed.perplexity, first=len(domain.raw))


def grid(num_panels: int) -> tuple[int, int]:
    """Rows and columns for so many panels."""
    num_columns = 2 if num_panels == 4 else min(num_panels, 3)
    return math.ceil(num_panels / num_columns), num_columns


def draw_panel(
    axes: "Axes", domain: DomainQuality, removed: Sequence[int], speedups: Sequence[float] = ()
) -> None:
    """Draw the curves of one domain with their intervals, below its name and its text.

    ``speedups`` are the predicted ones of 0, 1, 2 ... removals, if they are known.
    """
    for at, curve in enumerate(curves(domain)):
        style = _STYLES[curve.label]
        shift = curve.first + 0.08 * at
        step, value = draw_intervals(axes, curve.points, shift, curve.label, style)
        end = curve.perplexity
        axes.annotate(
            f"{end:,.0f}" if 1000 <= end < CEILING else short(end),
            (step, value),
            textcoords="offset points",
            color=style["color"],
            size=8,
            **_BESIDE[curve.label],
        )
    name_text(axes, domain)
    _name_steps(axes, removed, speedups)


def draw_intervals(
    axes: "Axes",
    points: Sequence[tuple[float, float, float]],
    shift: float,
    label: str,
    style: Mapping[str, Any],
) -> tuple[float, float]:
    """Draw a curve, shifted so that no bar hides another. Returns the place of the last point."""
    lows, values, highs = zip(*points, strict=True)
    errors = (
        [value - low for value, low in zip(values, lows, strict=True)],
        [high - value for value, high in zip(values, highs, strict=True)],
    )
    steps = [step + shift for step in range(len(values))]
    axes.errorbar(steps, values, errors, capsize=2.5, elinewidth=1, label=label, **style)
    return steps[-1], values[-1]


def drawn_values(domains: Sequence[DomainQuality]) -> list[float]:
    """Every value and end of an interval in the panels of these domains."""
    points = [point for domain in domains for curve in curves(domain) for point in curve.points]
    return [value for point in points for value in point]


def _curve(label: str, domain: DomainQuality, model: Callable[[int], Measured]) -> Curve:
    depths = [model(number) for number in range(1, len(domain.raw) + 1)]
    points = ((1.0, 1.0, 1.0), *(limited_ratio(domain.ratio(depth)) for depth in depths))
    return Curve(label, points, (depths or [domain.dense])[-1].perplexity)


def limited_ratio(ratio: Interval) -> tuple[float, float, float]:
    """Low end, value and high end, limited to what can be drawn.

    An unknown interval has no length.
    """
    value = _limited(ratio.value)
    low, high = (value if end is None else _limited(end) for end in (ratio.low, ratio.high))
    return min(low, value), value, max(high, value)


def _limited(value: float) -> float:
    return max(1 / CEILING, min(CEILING, value))  # NaN becomes the ceiling


def name_text(axes: "Axes", domain: DomainQuality) -> None:
    source = domain.source
    if len(source) > _MAX_SOURCE:
        half = _MAX_SOURCE // 2
        source = f"{source[: half - 1]}…{source[-half:]}"
    windows = f"{counted(domain.num_windows, 'window')} of {domain.seqlen} tokens"
    lines = (
        (27, domain.domain, {"size": 11, "weight": "bold"}),
        (16, source, {"size": 7.5}),
        (5, f"{windows}, dense {short(domain.dense.perplexity)}", {"size": 7.5}),
    )
    for offset, text, style in lines:
        axes.annotate(
            text,
            (0, 1),
            xytext=(0, offset),
            xycoords="axes fraction",
            textcoords="offset points",
            **style,
        )


def _name_steps(axes: "Axes", removed: Sequence[int], speedups: Sequence[float]) -> None:
    """Ticks for numbers of removed blocks, with the block removed last if there is room.

    Below them, the axis of speed has the predicted speed-ups of some depths.
    """
    is_named = len(removed) <= _MAX_NAMED
    steps = range(len(removed) + 1)[
        :: 1 if is_named else math.ceil((len(removed) + 1) / _MAX_TICKS)
    ]
    labels = [str(step) for step in steps]
    if is_named:
        labels[1:] = [f"{step}\n({block})" for step, block in enumerate(removed, start=1)]
        labels[0] += "\n" if speedups else ""
    what = "removed blocks (the last one)" if is_named else "removed blocks"
    name_speeds(axes, steps, labels, speedups, what)
    axes.set_xlim(-0.3, len(removed) * 1.2 + 0.3)  # room for the perplexities at the end


def name_speeds(
    axes: "Axes",
    steps: Sequence[int],
    labels: list[str],
    speedups: Sequence[float],
    what: str = "removed blocks",
) -> None:
    """Ticks with these labels, and below some of them the predicted speed-up of that depth."""
    known = [at for at, step in enumerate(steps) if step < len(speedups)]
    for at in known[:: math.ceil(len(known) / _MAX_SPEEDS) or 1]:
        labels[at] += f"\n{speedups[steps[at]]:.2f}×"
    axes.set_xticks(steps, labels, size=8)
    axes.set_xlabel(f"{what}\npredicted speed-up" if speedups else what, size=8)
