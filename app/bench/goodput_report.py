"""The report of a goodput: sentences, JSON values, and a picture of the saturation."""

import math
from dataclasses import asdict
from fractions import Fraction
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any

from app.bench.goodput import Goodput
from app.bench.plan import AGAIN, DENSE
from app.compare.speedup import prompt_reading
from pruning.checkpoints.trajectory_plot import png

if TYPE_CHECKING:  # slow to import
    from matplotlib.figure import Figure

_COLORS = ("#222222", "#909090", "#0072B2", "#C44E00", "#00795A", "#8F4A7A")
_MARKS = ("o", "s", "^", "D", "v", "P")
_MOST_STRAIN = 2.5  # that the picture shows
_MOST_MACHINES = 12


def sentences(goodput: Goodput) -> list[str]:
    """One sentence for each variant, and one for the control."""
    return [_sentence(goodput, side) for side in (*goodput.removed, AGAIN)]


def _sentence(goodput: Goodput, side: str) -> str:
    dense, other, gain = fmean(goodput.rates(DENSE)), fmean(goodput.rates(side)), goodput.gain(side)
    rates = f"dense {dense:.3g}, {side} {other:.3g} requests a second"
    if gain is None:
        sides = dict.fromkeys((DENSE, AGAIN, side))
        lost = [name for name in sides if min(goodput.rates(name)) <= 0]
        return f"{rates}: no rate keeps the promise for {' and '.join(lost)}, so there is no ratio"
    ends = "" if gain.low is None else f" ({gain.low:.2f} to {gain.high:.2f})"
    text = f"{rates}: {gain.ratio:.2f} × the traffic{ends}, {gain.verdict.value}"
    return f"{text}{_machines(gain.low)}" if side != AGAIN else f"control: {text}"


def _machines(low: float | None) -> str:
    """How many machines take the place of how many, by the lower end of the interval."""
    if low is None or low <= 1:
        return ""
    for before in range(2, _MOST_MACHINES + 1):
        after = -(-Fraction(before) // Fraction(low))
        if after < before:
            return f"; {after} machines do what {before} did"
    return ""


def to_wire(goodput: Goodput) -> dict[str, Any]:
    """All that was measured, as JSON values."""
    climbs = chain.from_iterable(goodput.climbs.values())
    rungs = chain.from_iterable(climb.rungs for climb in climbs)
    return {
        "promise": asdict(goodput.plan.promise),
        "prompt_reading": prompt_reading(sum(rung.served.num_cached_tokens for rung in rungs)),
        "share": goodput.plan.share,
        "seconds": goodput.plan.seconds if math.isfinite(goodput.plan.seconds) else None,
        "num_requests": goodput.plan.num_requests,
        "goodput": {side: goodput.rates(side) for side in goodput.climbs},
        "gain": {
            side: (gain := goodput.gain(side)) and asdict(gain)
            for side in (AGAIN, *goodput.removed)
        },
        "climbs": {
            side: [asdict(climb) for climb in climbs] for side, climbs in goodput.climbs.items()
        },
        "sentences": sentences(goodput),
    }


def plot(goodput: Goodput) -> bytes:
    """A PNG of how the slowest requests saturate over the request rate."""
    return png(lambda: draw(goodput))


def draw(goodput: Goodput) -> "Figure":
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (side, climbs) in enumerate(goodput.climbs.items()):
        color, mark = _COLORS[number % len(_COLORS)], _MARKS[number % len(_MARKS)]
        rungs = [rung for climb in climbs for rung in climb.rungs if rung.served.strain is not None]
        for is_whole, face in ((True, color), (False, "none")):
            chosen = [rung for rung in rungs if rung.served.is_cut_short is not is_whole]
            strains = [min(_MOST_STRAIN, rung.served.strain or 0.0) for rung in chosen]
            rates = [rung.rate for rung in chosen]
            axes.plot(rates, strains, mark, color=color, mfc=face, ms=5, alpha=0.8)
        rate = fmean(goodput.rates(side))
        axes.axvline(rate, color=color, lw=1.5, ls="--" if side == AGAIN else "-")
        axes.plot([], [], f"-{mark}", color=color, label=f"{side}: {rate:.3g} requests a second")
    axes.axhline(1, color="#909090", lw=1)
    axes.set_xlim(left=0)
    axes.set_ylim(0, _MOST_STRAIN * 1.04)
    axes.set_xlabel("requests a second (open loop); hollow: ended once the promise was lost")
    axes.set_ylabel(f"time of the slowest {1 - goodput.plan.share:.0%}, × what is promised")
    axes.set_title(f"Promise: {goodput.plan.promise}; lines: goodput", loc="left", size=10)
    axes.legend(loc="upper left")
    return figure
