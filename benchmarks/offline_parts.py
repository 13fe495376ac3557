"""The parts of the serving benchmark that need no server."""

from dataclasses import asdict
from functools import partial

from benchmarks.baselines import run_continuous, run_one_by_one, run_static
from benchmarks.context_length import markdown, measure_growth
from benchmarks.depth import measure_speedup, measure_weights
from benchmarks.latencies import median_tpot_s, performance, throughput
from benchmarks.offline import run_engine
from benchmarks.plan import Baseline, Found, Plan, Subject
from benchmarks.sides import Side, alternate, ratio
from benchmarks.steady import steady_output_len

_STATIC_BATCH = 64
_NUM_SINGLE = 2  # requests of one at a time


def offline(subject: Subject, plan: Plan) -> Found:
    """Requests of one length, all there from the start."""
    asks = subject.prompts(plan).uniform(plan.num_requests, plan.prompt_len, plan.output_len)
    sides: dict[str, Side] = {"engine": partial(run_engine, subject.dense, concurrency=len(asks))}
    if Baseline.GENERATE in plan.against:
        sides["generate"] = partial(run_static, subject.dense.model, batch_size=_STATIC_BATCH)
    if Baseline.CONTINUOUS_BATCHING in plan.against:
        sides["continuous-batching"] = partial(run_continuous, subject.dense.model)
    passes = alternate(sides, asks, plan.repeats)
    details = {name: throughput(its) for name, its in passes.items()}
    return Found(
        details | {"engine": performance(passes["engine"])},
        {
            "offline_vs_generate": ratio(passes, "engine", "generate"),
            "offline_vs_continuous_batching": ratio(passes, "engine", "continuous-batching"),
        },
    )


def mixed(subject: Subject, plan: Plan) -> Found:
    """Requests of many lengths; static batches run to their longest answer."""
    asks = subject.prompts(plan).mixed(
        plan.num_mixed, plan.mixed_prompt_lens, plan.mixed_output_lens
    )
    sides: dict[str, Side] = {"engine": partial(run_engine, subject.dense, concurrency=len(asks))}
    if Baseline.GENERATE in plan.against:
        sides["static"] = partial(run_static, subject.dense.model, batch_size=_STATIC_BATCH)
    passes = alternate(sides, asks, plan.repeats)
    details = {name: throughput(its) for name, its in passes.items()}
    return Found(
        {
            "prompt_lens": plan.mixed_prompt_lens,
            "output_lens": plan.mixed_output_lens,
            **details,
            "engine": performance(passes["engine"]),
        },
        {"offline_mixed_vs_static": ratio(passes, "engine", "static")},
    )


def batch1(subject: Subject, plan: Plan) -> Found:
    """One request at a time: what counts is the time per token after the first."""
    asks = subject.prompts(plan).uniform(_NUM_SINGLE, plan.prompt_len, plan.output_len)
    sides: dict[str, Side] = {"engine": partial(run_engine, subject.dense, concurrency=1)}
    if Baseline.GENERATE in plan.against:
        sides["generate"] = partial(run_one_by_one, subject.dense.model)
    passes = alternate(sides, asks, plan.repeats)
    tpots_s = {name: median_tpot_s(its) for name, its in passes.items()}
    gain = tpots_s["generate"] / tpots_s["engine"] if "generate" in tpots_s else None
    details = {name: performance(its) for name, its in passes.items()}
    return Found(details, {"batch1_vs_generate": gain})


def pruned(subject: Subject, plan: Plan) -> Found:
    """Every variant that is asked for; the ratios are those of the first."""
    output_len = steady_output_len(plan.batch_size, plan.num_steps)
    asks = subject.prompts(plan).uniform(plan.batch_size, plan.prompt_len, output_len)
    found = {
        suffix: measure_speedup(subject.dense, removed, asks, plan.num_steps)
        for suffix, removed in subject.removed.items()
    }
    first = next(iter(found.values()))
    return Found(
        {suffix: asdict(speedup) for suffix, speedup in found.items()},
        {"pruned_speedup": first.speedup, "pruned_speedup_bound": first.bound},
    )


def weights(subject: Subject, _plan: Plan) -> Found:
    found = measure_weights(subject.dense)
    return Found({**found}, {"weights_with_ten_variants": found["bytes"] / found["dense_bytes"]})


def context(subject: Subject, plan: Plan) -> Found:
    growths = measure_growth(subject.dense, subject.prompts(plan), plan.context_lens)
    details = {f"batch {one.batch_size}": asdict(one) for one in growths}
    return Found(details, markdown=markdown(growths, f"Cost of context, {subject.dense.name}"))
