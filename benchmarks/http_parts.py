"""The part of the serving benchmark that uses HTTP: closed loops and one open loop."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.baselines import pages_of
from benchmarks.latencies import Pass, SideRunner, performance, rate, ratio, run_in_turn
from benchmarks.load import closed_loop, open_loop
from benchmarks.offline import run_engine
from benchmarks.plan import Baseline, PartResult, ServePlan, ServeSubject
from benchmarks.servers import Server, sleb_serve, transformers_serve
from benchmarks.workload import SampleRequest

_MIN_REQUESTS = 2  # of a closed loop
_OPEN_LOOP_SHARE = 0.5  # of the rate of the largest closed loop
OFFLINE, SLEB = "offline", "sleb serve"
CONTINUOUS = "transformers serve --continuous-batching"
ONE_BY_ONE = "transformers serve"  # its default; its rate does not depend on the number of clients


def http(subject: ServeSubject, plan: ServePlan) -> PartResult:
    """Alternate between ``sleb serve`` and the engine alone.

    At the largest concurrency ``transformers serve`` takes part, with and without continuous
    batching. The faster of the two counts.
    """
    highest = max(plan.concurrency)
    closed: dict[int, Mapping[str, Sequence[Pass]]] = {}
    with ExitStack() as stack:
        sleb = stack.enter_context(sleb_serve(subject.path, subject.dtype, subject.threads))
        for concurrency in plan.concurrency:
            sides: dict[str, SideRunner] = {
                OFFLINE: partial(
                    run_engine,
                    subject.dense,
                    concurrency=concurrency,
                    make_engine=subject.engine,
                ),
                SLEB: partial(closed_loop, sleb, concurrency=concurrency),
            }
            if concurrency == highest and Baseline.TRANSFORMERS_SERVE in plan.against:
                sides |= _transformers_sides(stack, subject, plan)
            requests = subject.prompts(plan).uniform(
                max(concurrency, _MIN_REQUESTS), plan.prompt_len, plan.output_len
            )
            closed[concurrency] = run_in_turn(sides, requests, plan.repeats)
        opened = _open_loop(sleb, subject, plan, closed[highest][SLEB])
    details = {
        str(concurrency): {name: performance(timed) for name, timed in passes.items()}
        for concurrency, passes in closed.items()
    }
    baselines = [name for name in (CONTINUOUS, ONE_BY_ONE) if name in closed[highest]]
    fastest = max(baselines, key=lambda name: rate(closed[highest][name]), default=CONTINUOUS)
    return PartResult(
        {"closed_loop": details, "open_loop": opened},
        {
            "http_vs_offline": ratio(closed[highest], SLEB, OFFLINE),
            "http_vs_transformers_serve": ratio(closed[highest], SLEB, fastest),
        },
    )


def _transformers_sides(
    stack: ExitStack, subject: ServeSubject, plan: ServePlan
) -> dict[str, SideRunner]:
    concurrency = max(plan.concurrency)
    start = partial(transformers_serve, subject.path, subject.dtype, subject.threads)
    one_by_one = stack.enter_context(start())
    num_pages = concurrency * pages_of(plan.prompt_len + plan.output_len)
    continuous = stack.enter_context(start(num_pages))

    def run_few(requests: Sequence[SampleRequest]) -> Pass:
        return closed_loop(one_by_one, requests[:_MIN_REQUESTS], concurrency)

    return {
        CONTINUOUS: partial(closed_loop, continuous, concurrency=concurrency),
        ONE_BY_ONE: run_few,
    }


def _open_loop(
    sleb: Server, subject: ServeSubject, plan: ServePlan, closed: Sequence[Pass]
) -> dict[str, Any]:
    """As many requests as in the largest closed loop, at a rate that the service can sustain."""
    requests_per_s = plan.open_loop_rate or _OPEN_LOOP_SHARE * rate(closed) / plan.output_len
    requests = subject.prompts(plan).uniform(
        len(closed[0].timings), plan.prompt_len, plan.output_len
    )
    one = open_loop(sleb, requests, requests_per_s, plan.seed)
    return {"requests_per_s": round(requests_per_s, 4), SLEB: performance([one])}
