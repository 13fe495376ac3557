"""The ``sleb`` command. It starts without torch, as commands import what they run lazily."""

import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.cli.ask import chat, compare
from app.cli.bench import bench
from app.cli.eval import evaluate
from app.cli.export import export
from app.cli.frontier import frontier
from app.cli.jobs import jobs
from app.cli.keys import keys
from app.cli.models import advise, models
from app.cli.options import AsJson, WholeHelp, with_options
from app.cli.prune import heal, prune, stability
from app.config import cluster_settings, serve_settings
from app.settings import (
    UnknownSetting,
    check_cluster,
    check_device,
    check_port,
    check_ports,
    check_variables,
    effective_settings,
    invalid_settings,
)
from app.terminal import filled, print_json, starting
from pruning.config import UnreadableSecrets, WorkerSettings, share_cpus
from pruning.process import DISK_FULL
from pruning.spec import InvalidSpec


class _Commands(WholeHelp):
    """The commands, whose messages about values are plain: typer has them from pydantic."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 - typer's context has no public name
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="sleb",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its tables cut the names of options in narrow terminals
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make language models cheaper by removing redundant transformer blocks, serve "
    "them alongside the dense models, and measure the difference.",
)
app.command()(prune)
app.command()(heal)
app.command("eval")(evaluate)
app.command()(advise)
app.command()(frontier)
app.command()(export)
app.command()(stability)
app.command()(bench)
app.command()(chat)
app.command()(compare)
app.add_typer(jobs, name="jobs")
app.add_typer(keys, name="keys")
app.add_typer(models, name="models")

Host = Annotated[str | None, typer.Option(help="Address to listen on [SLEB_HOST, 127.0.0.1].")]
Port = Annotated[
    int | None, typer.Option(help="Port to listen on; 0 picks a free port [SLEB_PORT, 8000].")
]
Insecure = Annotated[
    bool | None,
    typer.Option(
        "--insecure",
        help="Accept connections from other machines without API keys [SLEB_INSECURE].",
    ),
]


CheckedModel = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="Check only this model, by its config: a name in the data directory, a directory, or "
        "ORG/NAME of the hub.",
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="Print details too, as the kernels and their timings.")
]


class NoRoom(Exception):
    """A command could not write a file."""

    def __init__(self, error: OSError) -> None:
        where = "" if error.filename is None else f" {error.filename}"
        super().__init__(
            f"cannot write{where} ({error.strerror}): free space in the data directory, the "
            "output directory and the directory for temporary files, then run the command "
            "again"
        )


def main() -> None:
    """Run the command line. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted."""
    share_cpus()
    errors = Console(stderr=True, highlight=False)
    try:
        app()
    except ValidationError as error:
        _print_error(errors, invalid_settings(error))
        sys.exit(2)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            error = NoRoom(error)
        # own errors are messages to the user; any other is a bug, and shown with its traceback
        if type(error).__module__.partition(".")[0] not in ("app", "pruning"):
            raise
        message = with_options(str(error)) if isinstance(error, InvalidSpec) else str(error)
        _print_error(errors, message)
        sys.exit(2 if isinstance(error, InvalidSpec | UnknownSetting | UnreadableSecrets) else 1)


def _print_error(console: Console, message: str) -> None:
    """On whole lines where it is not read in a terminal, such as in a log."""
    console.print(Text.assemble(("error: ", "red"), message), soft_wrap=not console.is_terminal)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"sleb-serve {version('sleb-serve')}")
        raise typer.Exit


@app.callback()
def begin(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Check the variables before every command, except the doctor, which reports them itself."""
    if context.invoked_subcommand != "doctor":
        check_variables()


@app.command()
def config(as_json: AsJson = False) -> None:
    """Print every setting and its source; secrets are masked."""
    check_ports(serve_settings(), WorkerSettings())
    settings = effective_settings()
    if as_json:
        print_json(settings)
        return
    headings = ("variable", "value", "source")
    rows = ((setting.variable, setting.value, setting.source) for setting in settings)
    Console(highlight=False).print(filled(Table(), headings, rows, headings, overflow="fold"))


@app.command()
def doctor(model: CheckedModel = None, verbose: Verbose = False, as_json: AsJson = False) -> None:
    """Check whether the service can run on this machine; the exit code is 1 if a check fails.

    With MODEL, check whether the model is supported, how it is served, and which repairs it
    allows.
    """
    with starting():
        from app.doctor.doctor import diagnose
        from app.doctor.finding import print_findings
        from app.doctor.named import named_model
        from pruning.models.store import set_up_torch

        set_up_torch()
    console = Console(highlight=False)
    with console.status("Checking") as status:
        findings = (
            named_model(model, serve_settings())
            if model is not None
            else diagnose(lambda what: status.update(f"Checking {what}"))
        )
        is_fine = print_findings(findings, console, as_json=as_json, is_verbose=verbose)
    if not is_fine:
        raise typer.Exit(1)


@app.command()
def up(host: Host = None, port: Port = None, insecure: Insecure = None) -> None:
    """Run the embedded Valkey, one worker and the API on this machine."""
    from app.server.up import run_up

    settings = serve_settings(host=host, port=port, insecure=insecure)
    check_device(settings)
    check_port(settings)
    check_ports(settings, WorkerSettings())
    run_up(settings)


@app.command()
def serve(host: Host = None, port: Port = None, insecure: Insecure = None) -> None:
    """Run the API: generation, jobs, models and metrics."""
    settings = serve_settings(host=host, port=port, insecure=insecure)
    check_device(settings)
    check_port(settings)
    with starting():
        from app.server.serve import run_api  # imports torch, after the check

    run_api(settings)


@app.command()
def cluster(
    host: Host = None,
    port: Port = None,
    replicas: Annotated[
        int | None, typer.Option(min=1, help="Minimum number of replicas [SLEB_REPLICAS, 1].")
    ] = None,
    max_replicas: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Maximum number of replicas; the service scales with load [SLEB_MAX_REPLICAS].",
        ),
    ] = None,
    insecure: Insecure = None,
) -> None:
    """Run the API on a Ray cluster, with replicas on its machines behind one address."""
    settings = cluster_settings(
        host=host, port=port, replicas=replicas, max_replicas=max_replicas, insecure=insecure
    )
    check_cluster(settings)
    with starting():
        from app.cluster.run import run_cluster  # imports torch and ray, after the check

    run_cluster(settings)


@app.command()
def worker() -> None:
    """Run a worker, which processes one pruning job at a time."""
    settings = WorkerSettings()
    with starting():
        from app.models.measured_speedups import MeasuredSpeedups
        from app.server.valkey import redis_url
        from pruning.worker.entrypoints import run_worker

    check_device(settings)
    with redis_url(settings) as url:
        run_worker(settings, url, speedup_of=MeasuredSpeedups(settings.data_dir).of_checkpoint)


@app.command()
def demo(
    keep: Annotated[bool, typer.Option(help="Keep the service running after the demo.")] = False,
    num_remove: Annotated[
        int, typer.Option(min=1, max=28, help="Number of blocks to remove, of 30.")
    ] = 3,
    port: Port = None,
    evaluate_s: Annotated[
        float,
        typer.Option(
            min=0, help="Time for the evaluation, in seconds; less time gives wider intervals."
        ),
    ] = 15,
    measure_s: Annotated[
        float,
        typer.Option(
            min=0,
            help="Time for the speed measurement, in seconds; less time gives wider intervals.",
        ),
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """Prune a real model, serve it alongside the dense model, and compare the two."""
    from app.commands.demo import run_demo

    run_demo(
        serve_settings(port=port),
        num_remove,
        keep=keep,
        as_json=as_json,
        evaluate_s=evaluate_s,
        measure_s=measure_s,
    )
