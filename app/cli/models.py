"""``sleb models`` and ``sleb advise``: the models of the data directory. Imports are lazy."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import AsJson, MinTaskShare, Url, WholeHelp
from app.config import serve_settings
from app.terminal import starting
from pruning.evaluation.limits import Limits

models = typer.Typer(
    cls=WholeHelp,
    invoke_without_command=True,
    help="List the models in the data directory and their pruned variants, or add a model.",
)


@models.callback()
def list_models(
    context: typer.Context,
    as_json: AsJson = False,
) -> None:
    if context.invoked_subcommand is not None:
        return
    from app.commands.models import print_models

    print_models(serve_settings(), as_json=as_json)


@models.command()
def alias(
    name: Annotated[
        str | None, typer.Argument(metavar="ALIAS", help="Name of the alias, e.g. prod.")
    ] = None,
    target: Annotated[str | None, typer.Argument(help="Model or variant, e.g. NAME@JOB-3.")] = None,
    *,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
) -> None:
    """List aliases, or set, change or remove one. Running services apply it immediately."""
    from app.commands.models import change_alias, print_aliases

    if name is None:
        print_aliases(serve_settings())
    elif (target is None) != remove:
        raise typer.BadParameter("expected either TARGET or --remove")
    else:
        change_alias(serve_settings(), name, target)


@models.command()
def plot(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CHECKPOINT]...", help="NAME@JOB, or NAME for all checkpoints of a model."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Output file, as PNG.")] = Path("models.png"),
) -> None:
    """Plot the perplexity curves of several checkpoints of a model, per text, with intervals."""
    from app.commands.models import plot_models

    plot_models(serve_settings(), names or [], out.expanduser())


@models.command()
def rm(
    name: Annotated[str, typer.Argument(help="Name of a dense model in a running service.")],
    url: Url = None,
) -> None:
    """Delete a model of a running service. A model that requests, jobs or aliases use is not
    deleted.
    """
    from urllib.parse import quote

    from app.commands.client import service_client

    with service_client(url) as client:
        client.request("DELETE", f"/models/{quote(name, safe='')}")
    typer.echo(f"deleted {name}")


@models.command()
def add(
    source: Annotated[
        str,
        typer.Argument(
            help="ORG/NAME on the Hugging Face hub, s3://BUCKET/NAME, a directory, or a GGUF file."
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the model in the service; by default the last part of SOURCE."),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit on the hub; by default the main branch."),
    ] = None,
) -> None:
    """Download or copy the safetensors, config and tokenizer files of a model.

    Other files are skipped. A GGUF file is converted to this format, in bfloat16.
    """
    with starting():
        from app.models.add import add_model

    target = add_model(source, serve_settings(), name=name, revision=revision)
    typer.echo(f"added {target.name} in {target}")


def advise(
    model: Annotated[str, typer.Argument(help="Name of a dense model in the data directory.")],
    max_ratio: Annotated[
        float, typer.Option(help="Maximum perplexity relative to the dense model, on every text.")
    ] = Limits.max_ratio,
    min_speedup: Annotated[
        float, typer.Option(help="Minimum speed-up of what is worth taking.")
    ] = Limits.min_speedup,
    min_probe: Annotated[
        float | None, typer.Option(help="Minimum probe score, from 0 to 1.")
    ] = Limits.min_probe,
    min_task_share: MinTaskShare = Limits.min_task_share,
    load: Annotated[
        str | None,
        typer.Option(help="Load that the answer begins with: stream, a number of streams, prompt."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what to take of a model, from what is known of int8 weights and of all its depths.

    What is taken has intervals within the limits. If a measurement is missing that could change the
    answer, the next step is the command that makes it.
    """
    limits = Limits(max_ratio, min_speedup, min_probe, min_task_share)
    from app.commands.models import print_advice

    print_advice(serve_settings(), model, limits, load, as_json=as_json)
