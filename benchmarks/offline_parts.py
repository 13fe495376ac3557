"""The parts of the serving benchmark that do not use HTTP."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

from benchmarks.bandwidth import weights_floor
from benchmarks.baselines import run_sequential, run_static
from benchmarks.latencies import (
    Pass,
    SideRunner,
    median_tpot_s,
    performance,
    ratio,
    run_in_turn,
    throughput,
)
from benchmarks.offline import run_engine
from benchmarks.plan import Baseline, PartResult, ServePlan, ServeSubject
from benchmarks.workload import SampleRequest

_STATIC_BATCH = 64
_NUM_SINGLE = 2  # requests sent one at a time


def offline(subject: ServeSubject, plan: ServePlan) -> PartResult:
    """Requests of one length, all added at the start."""
    requests = subject.prompts(plan).uniform(plan.num_requests, plan.prompt_len, plan.output_len)
    return _over_static("offline_vs_generate", subject, plan, requests)


def mixed(subject: ServeSubject, plan: ServePlan) -> PartResult:
    """Requests of many lengths. Static batches run to their longest output."""
    requests = subject.prompts(plan).mixed(
        plan.num_mixed, plan.mixed_prompt_lens, plan.mixed_output_lens
    )
    return _over_static("offline_mixed_vs_static", subject, plan, requests)


def _over_static(
    name: str, subject: ServeSubject, plan: ServePlan, requests: Sequence[SampleRequest]
) -> PartResult:
    generate = partial(run_static, subject.dense.model, batch_size=_STATIC_BATCH)
    passes = _passes(subject, plan, requests, len(requests), generate)
    details = {side: throughput(timed) for side, timed in passes.items()}
    details["engine"] = performance(passes["engine"])
    return PartResult(details, {name: ratio(passes, "engine", "generate")})


def batch1(subject: ServeSubject, plan: ServePlan) -> PartResult:
    """One request at a time. The ratio is that of the time per output token."""
    requests = subject.prompts(plan).uniform(_NUM_SINGLE, plan.prompt_len, plan.output_len)
    passes = _passes(subject, plan, requests, 1, partial(run_sequential, subject.dense.model))
    tpots_s = {name: median_tpot_s(timed) for name, timed in passes.items()}
    gain = tpots_s["generate"] / tpots_s["engine"] if "generate" in tpots_s else None
    details: dict[str, object] = {name: performance(timed) for name, timed in passes.items()}
    floor = weights_floor(subject.dense.model)
    return PartResult(
        details | {"floor": asdict(floor)},
        {"batch1_vs_generate": gain, "batch1_vs_floor": tpots_s["engine"] / floor.seconds},
    )


def _passes(
    subject: ServeSubject,
    plan: ServePlan,
    requests: Sequence[SampleRequest],
    concurrency: int,
    generate: SideRunner,
) -> dict[str, list[Pass]]:
    """Turns of the engine, and of ``generate`` if it is asked for."""
    engine = partial(run_engine, subject.dense, concurrency=concurrency, make_engine=subject.engine)
    sides: dict[str, SideRunner] = {"engine": engine}
    if Baseline.GENERATE in plan.against:
        sides["generate"] = generate
    return run_in_turn(sides, requests, plan.repeats)
