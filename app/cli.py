"""The ``sleb`` command: what the user types, turned into calls. Every import of weight is lazy."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console

from app.bench_cli import bench
from app.calibration_options import calibration_of
from app.config_cli import config
from app.doctor_cli import doctor
from app.eval_cli import evaluate
from app.export_cli import export
from app.jobs_cli import jobs
from app.keys_cli import keys
from app.models_cli import models
from app.settings_table import UnknownSetting, check_variables
from app.stability_cli import stability
from pruning.config import UnreadableSecrets
from pruning.gate_spec import GateAction, gate_of
from pruning.process import hush_libraries
from pruning.spec import (
    Dataset,
    InvalidSpec,
    Metric,
    PruneSpec,
    Quantize,
    Resident,
    Sampling,
    Search,
)

app = typer.Typer(
    name="sleb",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make language models cheaper by deleting redundant transformer blocks, serve them beside "
    "their dense parents, and see what that bought.",
)
app.command("eval")(evaluate)
app.command()(export)
app.command()(stability)
app.command()(bench)
app.command()(config)
app.command()(doctor)
app.add_typer(jobs, name="jobs")
app.add_typer(keys, name="keys")
app.add_typer(models, name="models")

Host = Annotated[str | None, typer.Option(help="Address to listen on [SLEB_HOST, 127.0.0.1].")]
Port = Annotated[int | None, typer.Option(help="Port, 0 picks a free one [SLEB_PORT, 8000].")]
Insecure = Annotated[
    bool | None,
    typer.Option("--insecure", help="Listen to other machines without any key [SLEB_INSECURE]."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    hush_libraries()
    errors = Console(stderr=True, highlight=False)
    try:
        app()
    except ValidationError as error:
        errors.print(f"[red]error:[/] settings: {error}", markup=True)
        sys.exit(2)
    except Exception as error:
        if not _is_ours(error):
            raise
        errors.print("[red]error:[/] ", end="")
        errors.print(str(error), markup=False)
        sys.exit(2 if isinstance(error, InvalidSpec | UnknownSetting | UnreadableSecrets) else 1)


@app.callback()
def begin(context: typer.Context) -> None:
    """What every command does first; the doctor tells it with all else that is wrong."""
    if context.invoked_subcommand != "doctor":
        check_variables()


@app.command()
def up(host: Host = None, port: Port = None, insecure: Insecure = None) -> None:
    """Run everything on this machine: embedded Valkey, one worker and the API."""
    from app.config import check_ports, serve_settings
    from app.up import run_up
    from pruning.config import WorkerSettings

    settings = serve_settings(host=host, port=port, insecure=insecure)
    check_ports(settings, WorkerSettings())
    run_up(settings)


@app.command()
def serve(host: Host = None, port: Port = None, insecure: Insecure = None) -> None:
    """Run the API: generation, jobs, models, metrics."""
    from app.config import serve_settings
    from app.serve import run_api

    run_api(serve_settings(host=host, port=port, insecure=insecure))


@app.command()
def cluster(
    host: Host = None,
    port: Port = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Engines, at least [SLEB_REPLICAS, 1].")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(min=1, help="Engines at most, by the load [SLEB_MAX_REPLICAS].")
    ] = None,
    insecure: Insecure = None,
) -> None:
    """Run the API on a Ray cluster: engines on all its machines, behind one address."""
    from app.cluster import run_cluster
    from app.config import cluster_settings

    run_cluster(
        cluster_settings(
            host=host, port=port, replicas=replicas, max_replicas=max_replicas, insecure=insecure
        )
    )


@app.command()
def worker() -> None:
    """Run a worker: takes pruning jobs, one at a time."""
    from app.valkey import redis_url
    from pruning.config import WorkerSettings
    from pruning.entrypoints import run_worker

    settings = WorkerSettings()
    with redis_url(settings) as url:
        run_worker(settings, url)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Leave the service running at the end.")] = False,
    num_remove: Annotated[int, typer.Option(min=1, max=28, help="How many of 30 blocks.")] = 6,
    port: Port = None,
    as_json: AsJson = False,
) -> None:
    """Prune a real model, serve it beside its dense parent, and show what that bought."""
    from app.config import serve_settings
    from app.demo import run_demo

    run_demo(serve_settings(port=port), num_remove, keep=keep, as_json=as_json)


@app.command()
def prune(
    model: Annotated[str, typer.Argument(help="Name in the data directory, or a directory.")],
    out: Annotated[Path, typer.Option(help="Directory to publish the checkpoint in.")],
    num_remove: Annotated[int | None, typer.Option(help="How many blocks to remove.")] = None,
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the blocks to remove, rounded up.")
    ] = None,
    max_perplexity_ratio: Annotated[
        float | None, typer.Option(help="Stop before pruned / dense perplexity passes this.")
    ] = None,
    target_speedup: Annotated[
        float | None, typer.Option(help="Remove the fewest blocks that decode this much faster.")
    ] = None,
    calibration: Annotated[
        list[str],
        typer.Option(
            help="A text or jsonl file, or self, wikitext2, c4; several are mixed, as in "
            "--calibration A.txt --calibration B.txt=2.",
            metavar="TEXT[=WEIGHT]",
        ),
    ] = [Dataset.SELF.value],  # noqa: B006 - typer wants it so, and nobody changes it
    sampling: Annotated[
        Sampling, typer.Option(help="windows: the paper; rows: the reference code.")
    ] = Sampling.WINDOWS,
    num_samples: Annotated[int, typer.Option(help="Windows, or rows of raw text.")] = 16,
    seqlen: Annotated[int, typer.Option(help="Tokens per window.")] = 128,
    seed: Annotated[int, typer.Option(help="Of the calibration sample.")] = 0,
    protect_first: Annotated[int, typer.Option(help="First alive blocks that stay.")] = 1,
    protect_last: Annotated[int, typer.Option(help="Last alive blocks that stay.")] = 1,
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    evaluate: Annotated[bool, typer.Option(help="Perplexity of every depth at the end.")] = True,
    metric: Annotated[
        Metric, typer.Option(help="The paper's metric 3, or 1 or 2, which look at the dense model.")
    ] = Metric.SLEB,
    search: Annotated[
        Search, typer.Option(help="exact, or staged: clearly worse candidates leave early.")
    ] = Search.EXACT,
    resident: Annotated[
        Resident, typer.Option(help="model, or stream: one block at a time from the disk.")
    ] = Resident.MODEL,
    gate_max_probe_drop: Annotated[
        float | None, typer.Option(help="How much of the probe's score, 0 to 1, may be lost.")
    ] = None,
    gate_max_perplexity_ratio: Annotated[
        float | None, typer.Option(help="Pruned / dense perplexity on held-out text, at most.")
    ] = None,
    gate_action: Annotated[
        GateAction, typer.Option(help="What comes of more: publish with a warning, or not at all.")
    ] = GateAction.WARN,
    quantize: Annotated[
        Quantize | None,
        typer.Option(help="Measure the pruned model with weights of 8 or 4 bits as well."),
    ] = None,
    zero_shot: Annotated[
        bool, typer.Option("--zero-shot", help="Ask the paper's five tasks of dense and pruned.")
    ] = False,
    state_budget: Annotated[
        str | None, typer.Option(help="Bytes of hidden states to keep, as 4GiB.", metavar="BYTES")
    ] = None,
    actors: Annotated[int | None, typer.Option(help="Ray actors to search on, 0 for none.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prune a model here and now, without any server, and write a Hugging Face checkpoint.

    One of --num-remove, --sparsity, --max-perplexity-ratio and --target-speedup says how far to go.
    """
    from pruning.config import Settings

    spec = PruneSpec(
        model=model,
        num_remove=num_remove,
        sparsity=sparsity,
        max_perplexity_ratio=max_perplexity_ratio,
        target_speedup=target_speedup,
        calibration=calibration_of(calibration, sampling, num_samples, seqlen, seed),
        protect_first=protect_first,
        protect_last=protect_last,
        dtype=dtype,
        evaluate=evaluate,
        metric=metric,
        search=search,
        resident=resident,
        gate=gate_of(gate_max_probe_drop, gate_max_perplexity_ratio, gate_action),
        quantize=quantize,
        zero_shot=zero_shot,
    )
    given: dict[str, Any] = {"state_budget": state_budget, "num_actors": actors}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})
    from app.prune import run_prune  # brings torch: what is wrong above is told without it

    run_prune(spec, out, settings, as_json=as_json)


def _is_ours(error: Exception) -> bool:
    """Our own errors are messages to the user; anything else is a defect, with its traceback."""
    return type(error).__module__.partition(".")[0] in ("app", "pruning")
