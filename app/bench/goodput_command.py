"""``sleb bench --slo``: the goodput of a model and of its pruned variants.

The report has sentences, JSON values, and a picture of the saturation.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from app.bench.bench import subject_of
from app.bench.goodput import Goodput, GoodputPlan, measure_goodput
from app.bench.open_loop import Arrival, Promise, poisson, read_trace, serve
from app.bench.plan import AGAIN, DENSE, BenchPlan, BenchSubject
from app.bench.result import facts_of
from app.compare.speedup import prompt_reading
from app.terminal import json_text, print_json
from pruning.checkpoints.trajectory_plot import png
from pruning.config import Settings
from pruning.extras import has_extra, missing_extra

if TYPE_CHECKING:  # slow to import
    from matplotlib.figure import Figure

MOST_REQUESTS = 20_000  # at one rate
_START_BATCH = 8  # requests at a time
REPORT_FILE, PLOT_FILE = "goodput.json", "goodput.png"
_COLORS = ("#222222", "#909090", "#0072B2", "#C44E00", "#00795A", "#8F4A7A")
_MARKS = ("o", "s", "^", "D", "v", "P")
_MOST_STRAIN = 2.5  # that the picture shows
_MOST_MACHINES = 12


@dataclass(frozen=True)
class Asked:
    """What the options ask for. One of ``model`` and ``shape`` is given."""

    slo: str
    trace: Path | None
    num_requests: int  # at each rate, at least
    seconds: float  # of arrivals at each rate; a trace is served whole
    model: str | None
    shape: str | None
    variants: tuple[str, ...]  # none: the default
    dtype: str


def run_goodput(
    asked: Asked, plan: BenchPlan, out: Path, settings: Settings, *, as_json: bool
) -> None:
    """Measure, write ``goodput.json`` and, with the extra, ``goodput.png``, and print sentences.

    Raises ``InvalidPromise``, ``InvalidTrace``, and what a subject raises.
    """
    promise = Promise.parse(asked.slo)  # before anything is loaded
    recorded = None if asked.trace is None else read_trace(asked.trace)
    out.mkdir(parents=True, exist_ok=True)
    subject = subject_of(asked.model, asked.shape, asked.variants, asked.dtype, settings)
    arrivals = _arrivals(plan, recorded)
    console = Console(stderr=True, highlight=False)
    console.print(f"goodput of {subject.name} and {', '.join(subject.removed)}: {promise}")
    seconds = asked.seconds if recorded is None else math.inf
    goodput_plan = GoodputPlan(promise, arrivals, seconds, asked.num_requests, seed=plan.seed)
    start = _start(subject, arrivals[0])
    with Progress(console=console) as progress:
        task = progress.add_task("searches", total=len(arrivals) * (2 + len(subject.removed)))

        def show(side: str, rate: float) -> None:
            progress.console.print(f"{side}: {rate:.3g} requests/s meet it", markup=False)
            progress.advance(task)

        goodput = measure_goodput(subject, goodput_plan, start, show)
    wire = {"model": subject.name, **to_wire(goodput), **facts_of(asked.dtype)}
    (out / REPORT_FILE).write_text(json_text(wire, indent=2) + "\n", encoding="utf-8")
    if has_extra("plots"):
        (out / PLOT_FILE).write_bytes(plot(goodput))
    if as_json:
        print_json({"path": str(out), **wire})
    else:
        _print(sentences(goodput), out)


def _print(lines: Sequence[str], out: Path) -> None:
    shown = Console(highlight=False)
    for sentence in lines:
        shown.print(sentence, markup=False)
    has_plot = has_extra("plots")
    what = "report and plot" if has_plot else "report"
    shown.print(f"{what}: {out}", markup=False, soft_wrap=True)
    if not has_plot:
        shown.print(missing_extra("plots", "a plot"), markup=False, soft_wrap=True)


def _arrivals(plan: BenchPlan, recorded: Sequence[Arrival] | None) -> list[Sequence[Arrival]]:
    """Those of each repeat. A trace is the same in all of them."""
    if recorded is not None:
        return [recorded] * plan.repeats
    return [
        poisson(MOST_REQUESTS, plan.prompt_tokens, plan.served_tokens, plan.seed + repeat)
        for repeat in range(plan.repeats)
    ]


def _start(subject: BenchSubject, arrivals: Sequence[Arrival]) -> float:
    """A request rate to begin with, by the time of a single request after a warm-up.

    High, as a rate that breaks the promise ends soon, and a low one takes long.
    """
    anything, times_s = Promise(e2e_s=float("inf")), []
    for _ in range(2):
        served = serve(subject.dense, arrivals[:1], 1.0, anything, 1.0, tuner=subject.tuner)
        times_s.append(served.seconds)
    return _START_BATCH / times_s[-1]


def sentences(goodput: Goodput) -> list[str]:
    """One sentence for each variant, and one for the control."""
    return [_sentence(goodput, side) for side in (*goodput.removed, AGAIN)]


def _sentence(goodput: Goodput, side: str) -> str:
    dense, other, gain = fmean(goodput.rates(DENSE)), fmean(goodput.rates(side)), goodput.gain(side)
    rates = f"dense {dense:.3g}, {side} {other:.3g} requests/s"
    if gain is None:
        sides = dict.fromkeys((DENSE, AGAIN, side))
        lost = [name for name in sides if min(goodput.rates(name)) <= 0]
        return (
            f"{rates}: no rate meets the latency target for {' and '.join(lost)}, so there "
            "is no ratio"
        )
    ends = "" if gain.low is None else f" ({gain.low:.2f} to {gain.high:.2f})"
    text = f"{rates}: {gain.ratio:.2f}× the traffic{ends}, {gain.verdict.value}"
    return f"{text}{_machines(gain.low)}" if side != AGAIN else f"control: {text}"


def _machines(low: float | None) -> str:
    """How many machines take the place of how many, by the lower end of the interval."""
    if low is None or low <= 1:
        return ""
    for before in range(2, _MOST_MACHINES + 1):
        after = -(-Fraction(before) // Fraction(low))
        if after < before:
            return f"; {after} machines can replace {before}"
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
        axes.plot([], [], f"-{mark}", color=color, label=f"{side}: {rate:.3g} requests/s")
    axes.axhline(1, color="#909090", lw=1)
    axes.set_xlim(left=0)
    axes.set_ylim(0, _MOST_STRAIN * 1.04)
    axes.set_xlabel("requests/s (open loop); hollow: stopped once the latency target was missed")
    axes.set_ylabel(f"time of the slowest {1 - goodput.plan.share:.0%} / latency target")
    axes.set_title(f"Latency target: {goodput.plan.promise}; lines: goodput", loc="left", size=10)
    axes.legend(loc="upper left")
    return figure
