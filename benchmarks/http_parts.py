"""The part of the serving benchmark that goes through HTTP: closed loops, and one open loop."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.baselines import pages_of
from benchmarks.latencies import Pass, performance, rate
from benchmarks.load import closed_loop, open_loop
from benchmarks.offline import run_engine
from benchmarks.plan import Baseline, Found, Plan, Subject
from benchmarks.servers import Server, sleb_serve, transformers_serve
from benchmarks.sides import Side, alternate, ratio
from benchmarks.workload import Ask

_FEWEST = 2  # requests of a closed loop
_SHARE = 0.5  # of what is managed, for the open loop
OFFLINE, SLEB = "offline", "sleb serve"
CONTINUOUS = "transformers serve --continuous-batching"
ONE_BY_ONE = "transformers serve"  # as it comes: its rate is the same for any number of clients


def http(subject: Subject, plan: Plan) -> Found:
    """The service and the engine alone on the same requests in turn, and at the largest
    concurrency the service of transformers, of whose two ways the faster counts.
    """
    most = max(plan.concurrency)
    closed: dict[int, Mapping[str, Sequence[Pass]]] = {}
    with ExitStack() as stack:
        sleb = stack.enter_context(sleb_serve(subject.path, subject.dtype, subject.threads))
        for concurrency in plan.concurrency:
            sides: dict[str, Side] = {
                OFFLINE: partial(run_engine, subject.dense, concurrency=concurrency),
                SLEB: partial(closed_loop, sleb, concurrency=concurrency),
            }
            if concurrency == most and Baseline.TRANSFORMERS_SERVE in plan.against:
                sides |= _of_transformers(stack, subject, plan)
            asks = subject.prompts(plan).uniform(
                max(concurrency, _FEWEST), plan.prompt_len, plan.output_len
            )
            closed[concurrency] = alternate(sides, asks, plan.repeats)
        opened = _open_loop(sleb, subject, plan, closed[most][SLEB])
    details = {
        str(concurrency): {name: performance(its) for name, its in passes.items()}
        for concurrency, passes in closed.items()
    }
    theirs = [its for its in (CONTINUOUS, ONE_BY_ONE) if its in closed[most]]
    fastest = max(theirs, key=lambda name: rate(closed[most][name]), default=CONTINUOUS)
    return Found(
        {"closed_loop": details, "open_loop": opened},
        {
            "http_vs_offline": ratio(closed[most], SLEB, OFFLINE),
            "http_vs_transformers_serve": ratio(closed[most], SLEB, fastest),
        },
    )


def _of_transformers(stack: ExitStack, subject: Subject, plan: Plan) -> dict[str, Side]:
    concurrency = max(plan.concurrency)
    start = partial(transformers_serve, subject.path, subject.dtype, subject.threads)
    one_by_one = stack.enter_context(start())
    num_pages = concurrency * pages_of(plan.prompt_len + plan.output_len)
    continuous = stack.enter_context(start(num_pages))

    def a_few(asks: Sequence[Ask]) -> Pass:
        return closed_loop(one_by_one, asks[:_FEWEST], concurrency)

    return {
        CONTINUOUS: partial(closed_loop, continuous, concurrency=concurrency),
        ONE_BY_ONE: a_few,
    }


def _open_loop(
    sleb: Server, subject: Subject, plan: Plan, managed: Sequence[Pass]
) -> dict[str, Any]:
    """As many requests as in the largest closed loop, at a rate that can be kept up."""
    requests_per_s = plan.open_loop_rate or _SHARE * rate(managed) / plan.output_len
    asks = subject.prompts(plan).uniform(len(managed[0].answers), plan.prompt_len, plan.output_len)
    one = open_loop(sleb, asks, requests_per_s, plan.seed)
    return {"requests_per_s": round(requests_per_s, 4), SLEB: performance([one])}
