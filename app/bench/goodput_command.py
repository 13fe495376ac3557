"""``sleb bench --slo``: the goodput of a model and of its pruned variants."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from app.bench.bench import subject_of
from app.bench.goodput import GoodputPlan, measure_goodput
from app.bench.goodput_report import plot, sentences, to_wire
from app.bench.machine import facts_of
from app.bench.open_loop import Arrival, poisson, read_trace, serve
from app.bench.plan import BenchPlan, BenchSubject
from app.bench.promise import Promise
from app.terminal import print_json
from pruning.config import Settings
from pruning.extras import has_extra, missing_extra

MOST_REQUESTS = 20_000  # at one rate
_START_BATCH = 8  # requests at a time
REPORT_FILE, PLOT_FILE = "goodput.json", "goodput.png"


@dataclass(frozen=True)
class Asked:
    """What the options ask for. One of ``model`` and ``shape`` is given."""

    slo: str
    trace: Path | None
    num_requests: int  # at each rate, at least
    seconds: float  # of arrivals at each rate; a trace is served whole
    model: str | None
    shape: str | None
    variants: tuple[str, ...]
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
            progress.console.print(f"{side}: {rate:.3g} requests a second keep it", markup=False)
            progress.advance(task)

        goodput = measure_goodput(subject, goodput_plan, start, show)
    wire = {"model": subject.name, **to_wire(goodput), **facts_of(asked.dtype)}
    (out / REPORT_FILE).write_text(json.dumps(wire, indent=2) + "\n", encoding="utf-8")
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
    what = "report and picture" if has_plot else "report"
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
