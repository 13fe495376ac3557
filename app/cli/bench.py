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
        str | None, typer.Argument(help="Name in the data directory.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option(help="Directory for bench.json and bench.md.")] = Path(
        "bench"
    ),
    variants: Annotated[
        str | None,
        typer.Option(
            help="Compared with the dense model: @-3, unrepaired @-3+raw, +int8 or @-3+int8 with "
            "int8 weights. The dense model itself always runs twice, as the control. By default "
            "the deepest published variant; of a SHAPE @-6.",
            show_default=False,
        ),
    ] = None,
    random_weights: Annotated[
        str | None,
        typer.Option(
            help="Shape used instead of a model: llama-2-7b, llama-2-70b or opt-6.7b.",
            metavar="SHAPE",
        ),
    ] = None,
    scenarios: Annotated[
        str, typer.Option(help="Any of generation, prompt, served.")
    ] = "generation,prompt,served",
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size of generation.")] = 64,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help="Prompt of generation and served.")
    ] = 64,
    new_tokens: Annotated[int, typer.Option(min=2, help="New tokens of generation.")] = 128,
    long_prompt: Annotated[int, typer.Option(min=1, help="Tokens of the scenario prompt.")] = 2048,
    concurrency: Annotated[int, typer.Option(min=1, help="Clients of served.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="Requests of all clients of served.")] = 32,
    slo: Annotated[
        str | None,
        typer.Option(
            help="Measure goodput instead: the highest rate at which 99 % of the requests keep "
            "this promise, as ttft=500ms,tpot=50ms.",
            metavar="PROMISE",
        ),
    ] = None,
    slo_requests: Annotated[
        int,
        typer.Option(min=1, help="Requests at each rate, at least; fewer than 100 allow none."),
    ] = 100,
    slo_seconds: Annotated[
        float,
        typer.Option(min=0, help="Seconds of arrivals at each rate; many times one request's."),
    ] = 20,
    trace: Annotated[
        Path | None,
        typer.Option(help="JSON lines of arrival, prompt_tokens and new_tokens, for --slo."),
    ] = None,
    served_tokens: Annotated[
        int, typer.Option(min=2, help="New tokens of each request of served.")
    ] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="An interval needs at least two.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the random prompts.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights.")] = "auto",
    engine: Annotated[
        Engine, typer.Option(help="vllm measures servers of vLLM, with SLEB_VLLM_ARGS.")
    ] = "own",
    as_json: AsJson = False,
) -> None:
    """Measure speed-ups: dense and pruned in turn, with intervals and verdicts.

    The scenarios are generation and prompt processing as in the paper, and requests of many
    clients. With --slo, requests arrive at rising rates instead, by a Poisson process or as in
    --trace, whether earlier ones have an answer or not. Answers have fixed lengths.
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
        raise typer.BadParameter(f"--scenarios {scenarios}: expected any of {', '.join(Scenario)}")
    return tuple(scenario for scenario in Scenario if scenario in names)


def _check(
    model: str | None, random_weights: str | None, slo: str | None, trace: Path | None
) -> None:
    if (model is None) == (random_weights is None):
        raise typer.BadParameter("expected a MODEL or --random-weights, and not both")
    if trace is not None and slo is None:
        raise typer.BadParameter("--trace needs --slo")


def _check_engine(
    engine: Engine, random_weights: str | None, dtype: Dtype, slo: str | None
) -> None:
    """Refuse what only the own engine has."""
    if engine == "own":
        return
    only_own = {"--random-weights": random_weights, "--slo": slo}
    for name, value in only_own.items():
        if value is not None:
            raise typer.BadParameter(f"{name} is for the engine of this service: leave it out")
    if dtype != "auto":
        raise typer.BadParameter(
            f'--dtype is for --engine own: use SLEB_VLLM_ARGS="--dtype {dtype}"'
        )
