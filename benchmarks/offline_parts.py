"""The parts of the serving benchmark that do not use HTTP."""

from dataclasses import asdict
from functools import partial

from benchmarks.bandwidth import weights_floor
from benchmarks.baselines import run_continuous, run_sequential, run_static
from benchmarks.context_length import markdown, measure_growth
from benchmarks.depth import measure_speedup, measure_weights
from benchmarks.latencies import (
    SideRunner,
    median_tpot_s,
    performance,
    ratio,
    run_in_turn,
    throughput,
)
from benchmarks.offline import run_engine
from benchmarks.plan import Baseline, PartResult, ServePlan, ServeSubject
from benchmarks.steady import steady_output_len

_STATIC_BATCH = 64
_NUM_SINGLE = 2  # requests sent one at a time


def offline(subject: ServeSubject, plan: ServePlan) -> PartResult:
    """Requests of one length, all added at the start."""
    requests = subject.prompts(plan).uniform(plan.num_requests, plan.prompt_len, plan.output_len)
    sides: dict[str, SideRunner] = {"engine": _engine(subject, len(requests))}
    if Baseline.GENERATE in plan.against:
        sides["generate"] = partial(run_static, subject.dense.model, batch_size=_STATIC_BATCH)
    if Baseline.CONTINUOUS_BATCHING in plan.against:
        sides["continuous-batching"] = partial(run_continuous, subject.dense.model)
    passes = run_in_turn(sides, requests, plan.repeats)
    details = {name: throughput(timed) for name, timed in passes.items()}
    return PartResult(
        details | {"engine": performance(passes["engine"])},
        {
            "offline_vs_generate": ratio(passes, "engine", "generate"),
            "offline_vs_continuous_batching": ratio(passes, "engine", "continuous-batching"),
        },
    )


def mixed(subject: ServeSubject, plan: ServePlan) -> PartResult:
    """Requests of many lengths. Static batches run to their longest output."""
    requests = subject.prompts(plan).mixed(
        plan.num_mixed, plan.mixed_prompt_lens, plan.mixed_output_lens
    )
    sides: dict[str, SideRunner] = {"engine": _engine(subject, len(requests))}
    if Baseline.GENERATE in plan.against:
        sides["static"] = partial(run_static, subject.dense.model, batch_size=_STATIC_BATCH)
    passes = run_in_turn(sides, requests, plan.repeats)
    details = {name: throughput(timed) for name, timed in passes.items()}
    return PartResult(
        {
            "prompt_lens": plan.mixed_prompt_lens,
            "output_lens": plan.mixed_output_lens,
            **details,
            "engine": performance(passes["engine"]),
        },
        {"offline_mixed_vs_static": ratio(passes, "engine", "static")},
    )


def batch1(subject: ServeSubject, plan: ServePlan) -> PartResult:
    """One request at a time. The ratio is that of the time per output token."""
    requests = subject.prompts(plan).uniform(_NUM_SINGLE, plan.prompt_len, plan.output_len)
    sides: dict[str, SideRunner] = {"engine": _engine(subject, 1)}
    if Baseline.GENERATE in plan.against:
        sides["generate"] = partial(run_sequential, subject.dense.model)
    passes = run_in_turn(sides, requests, plan.repeats)
    tpots_s = {name: median_tpot_s(timed) for name, timed in passes.items()}
    gain = tpots_s["generate"] / tpots_s["engine"] if "generate" in tpots_s else None
    details: dict[str, object] = {name: performance(timed) for name, timed in passes.items()}
    floor = weights_floor(subject.dense.model)
    return PartResult(
        details | {"floor": asdict(floor)},
        {"batch1_vs_generate": gain, "batch1_vs_floor": tpots_s["engine"] / floor.seconds},
    )


def _engine(subject: ServeSubject, concurrency: int) -> SideRunner:
    return partial(run_engine, subject.dense, concurrency=concurrency, make_engine=subject.engine)


def pruned(subject: ServeSubject, plan: ServePlan) -> PartResult:
    """All requested variants. The ratios are those of the first one."""
    output_len = steady_output_len(plan.batch_size, plan.num_steps)
    requests = subject.prompts(plan).uniform(plan.batch_size, plan.prompt_len, output_len)
    found = {
        suffix: measure_speedup(subject.dense, removed, requests, plan.num_steps, subject.engine)
        for suffix, removed in subject.removed.items()
    }
    first = next(iter(found.values()))
    return PartResult(
        {suffix: asdict(speedup) for suffix, speedup in found.items()},
        {"pruned_speedup": first.speedup, "pruned_speedup_bound": first.bound},
    )


def weights(subject: ServeSubject, _plan: ServePlan) -> PartResult:
    found = measure_weights(subject.dense)
    return PartResult(
        {**found}, {"weights_with_ten_variants": found["bytes"] / found["dense_bytes"]}
    )


def context(subject: ServeSubject, plan: ServePlan) -> PartResult:
    growths = measure_growth(subject.dense, subject.prompts(plan), plan.context_lens)
    details = {f"batch {one.batch_size}": asdict(one) for one in growths}
    return PartResult(details, markdown=markdown(growths, f"Cost of context, {subject.dense.name}"))
