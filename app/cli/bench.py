"""``sleb bench``: measure speed-ups. Imports are lazy."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.options import AsJson
from app.config import ServeSettings
from app.terminal import starting
from pruning.config import Settings
from pruning.spec.prune import Dtype

if TYPE_CHECKING:
    from app.bench.plan import Scenario


Engine = Literal["own", "vllm"]


def bench(
    model: Annotated[
        str | None,
        typer.Argument(help="Name of a model in the data directory.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="Output directory for bench.json and bench.md.")] = Path(
        "bench"
    ),
    variants: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated variants to compare with the dense model, e.g. @-3, @-3+raw "
            "(unrepaired), +int8 or @-3+int8 (int8 weights). The dense model always runs twice, "
            "as a control. By default the deepest published variant, or @-6 with SHAPE.",
            show_default=False,
        ),
    ] = None,
    random_weights: Annotated[
        str | None,
        typer.Option(
            help="Benchmark a model of this shape with random weights instead of MODEL: "
            "llama-2-7b, llama-2-70b or opt-6.7b.",
            metavar="SHAPE",
        ),
    ] = None,
    scenarios: Annotated[
        str, typer.Option(help="Comma-separated scenarios: generation, prompt, served.")
    ] = "generation,prompt,served",
    batch_size: Annotated[
        int, typer.Option(min=1, help="Batch size in the scenario generation.")
    ] = 64,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Prompt tokens in the scenarios generation and served.")
    ] = 64,
    new_tokens: Annotated[
        int, typer.Option(min=2, help="New tokens in the scenario generation.")
    ] = 128,
    long_prompt: Annotated[
        int, typer.Option(min=1, help="Prompt tokens in the scenario prompt.")
    ] = 2048,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Number of concurrent clients in the scenario served.")
    ] = 8,
    requests: Annotated[
        int, typer.Option(min=1, help="Total requests in the scenario served.")
    ] = 32,
    slo: Annotated[
        str | None,
        typer.Option(
            help="Measure goodput instead: the highest request rate at which 99 % of the "
            "requests meet this latency target, e.g. ttft=500ms,tpot=50ms.",
            metavar="PROMISE",
        ),
    ] = None,
    slo_requests: Annotated[
        int,
        typer.Option(
            min=1,
            help="Minimum number of requests per rate; with fewer than 100, no request may miss "
            "the target.",
        ),
    ] = 100,
    slo_seconds: Annotated[
        float,
        typer.Option(
            min=0,
            help="Duration of arrivals per rate, in seconds; use many times the duration of one "
            "request.",
        ),
    ] = 20,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Replay a trace with --slo: JSON lines with arrival, prompt_tokens and new_tokens."
        ),
    ] = None,
    served_tokens: Annotated[
        int, typer.Option(min=2, help="New tokens per request in the scenario served.")
    ] = 64,
    repeats: Annotated[
        int, typer.Option(min=1, help="Number of repeats; intervals need at least two.")
    ] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the random prompts.")] = 0,
    dtype: Annotated[
        Dtype, typer.Option(help="dtype of the weights; auto uses the checkpoint's dtype.")
    ] = "auto",
    engine: Annotated[
        Engine,
        typer.Option(help="own: built-in engine; vllm: vLLM servers, with SLEB_VLLM_ARGS."),
    ] = "own",
    as_json: AsJson = False,
) -> None:
    """Measure speed-ups of pruned models over the dense model, with intervals and verdicts.

    The models run in turn. The scenarios are generation and prompt processing, as in the paper,
    and serving many concurrent clients. With --slo, requests arrive at increasing rates instead,
    from a Poisson process or from --trace, without waiting for answers. Output lengths are fixed.
    """
    _check(model, random_weights, slo, trace)
    _check_engine(engine, random_weights, dtype, slo)
    settings, out = Settings(), out.expanduser().absolute()
    with starting():
        from app.bench.bench import bench_model, print_bench
        from app.bench.plan import BenchPlan

    plan = BenchPlan(
        scenarios=_named(scenarios),
        batch_size=batch_size,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        long_prompt=long_prompt,
        concurrency=concurrency,
        requests=requests,
        served_tokens=served_tokens,
        repeats=repeats,
        seed=seed,
    )
    names = tuple(name for name in (variants or "").split(",") if name)
    if slo is not None:
        from app.bench.goodput_command import Asked, run_goodput

        asked = Asked(slo, trace, slo_requests, slo_seconds, model, random_weights, names, dtype)
        run_goodput(asked, plan, out, settings, as_json=as_json)
        return
    out.mkdir(parents=True, exist_ok=True)  # fails before the work, not after it
    if model is not None and engine == "vllm":
        from app.bench.in_vllm import bench_in_vllm

        measured = bench_in_vllm(model, names, plan, out, ServeSettings())
    else:
        measured = bench_model(model, random_weights, names, plan, out, dtype, settings)
    print_bench(measured, out, as_json=as_json)


def _named(scenarios: str) -> "tuple[Scenario, ...]":
    from app.bench.plan import Scenario

    names = [name for name in scenarios.split(",") if name]
    if not names or set(names) - set(Scenario):
        raise typer.BadParameter(
            f"--scenarios {scenarios}: expected a comma-separated list of {', '.join(Scenario)}"
        )
    return tuple(scenario for scenario in Scenario if scenario in names)


def _check(
    model: str | None, random_weights: str | None, slo: str | None, trace: Path | None
) -> None:
    if (model is None) == (random_weights is None):
        raise typer.BadParameter("expected either MODEL or --random-weights")
    if trace is not None and slo is None:
        raise typer.BadParameter("--trace requires --slo")


def _check_engine(
    engine: Engine, random_weights: str | None, dtype: Dtype, slo: str | None
) -> None:
    """Refuse what only the own engine has."""
    if engine == "own":
        return
    only_own = {"--random-weights": random_weights, "--slo": slo}
    for name, value in only_own.items():
        if value is not None:
            raise typer.BadParameter(
                f"{name} requires --engine own: remove it, or use --engine own"
            )
    if dtype != "auto":
        raise typer.BadParameter(
            f'--dtype requires --engine own: set SLEB_VLLM_ARGS="--dtype {dtype}" instead'
        )
