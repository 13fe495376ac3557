"""``sleb models`` and ``sleb advise``: the models of the data directory. Imports are lazy."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import AsJson, Url, WholeHelp
from app.config import serve_settings
from app.terminal import starting
from pruning.evaluation.advice import Limits

models = typer.Typer(
    cls=WholeHelp,
    invoke_without_command=True,
    help="List the models of the data directory and their pruned variants, or add one.",
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
    name: Annotated[str | None, typer.Argument(metavar="ALIAS", help="As in prod.")] = None,
    target: Annotated[
        str | None, typer.Argument(help="A model or variant, as NAME@JOB-3; without it, nothing.")
    ] = None,
    *,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the alias.")] = False,
) -> None:
    """List the aliases, or set, switch or remove one. A running service follows at once."""
    from app.commands.models import change_alias, print_aliases

    if name is None:
        print_aliases(serve_settings())
    elif (target is None) != remove:
        raise typer.BadParameter("expected either a TARGET or --remove")
    else:
        change_alias(serve_settings(), name, target)


@models.command()
def plot(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CHECKPOINT]...", help="NAME@JOB, or NAME for all of this model."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("models.png"),
) -> None:
    """Plot the curves of several checkpoints of a model, text by text, with intervals."""
    from app.commands.models import plot_models

    plot_models(serve_settings(), names or [], out.expanduser())


@models.command()
def rm(
    name: Annotated[str, typer.Argument(help="A dense model of a running service.")],
    url: Url = None,
) -> None:
    """Delete a model of a running service; refused while requests, jobs or aliases use it."""
    from urllib.parse import quote

    from app.commands.client import service_client

    with service_client(url) as client:
        client.request("DELETE", f"/models/{quote(name, safe='')}")
    typer.echo(f"{name} is deleted")


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
        typer.Option(help="Its name in the service; by default the last part of SOURCE."),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit on the hub; by default the main branch."),
    ] = None,
) -> None:
    """Fetch or copy the safetensors, config and tokenizer files of a model, and no others.

    A GGUF file is written as such files, in bfloat16.
    """
    with starting():
        from app.models.add import add_model

    target = add_model(source, serve_settings(), name=name, revision=revision)
    typer.echo(f"{target.name} is in {target}")


def advise(
    model: Annotated[str, typer.Argument(help="A dense model of the data directory.")],
    max_ratio: Annotated[
        float, typer.Option(help="Maximum of pruned / dense perplexity, on every text.")
    ] = Limits.max_ratio,
    min_speedup: Annotated[
        float, typer.Option(help="Minimum speed-up per token.")
    ] = Limits.min_speedup,
    min_probe: Annotated[
        float | None, typer.Option(help="Minimum score of the probe, 0 to 1.")
    ] = Limits.min_probe,
    as_json: AsJson = False,
) -> None:
    """Say which depth of a model to take, what it gives and costs, and how sure that is.

    A depth is taken if its intervals show that it keeps the limits. What is not known is named,
    with the command that measures it.
    """
    limits = Limits(max_ratio, min_speedup, min_probe)
    from app.commands.models import print_advice

    print_advice(serve_settings(), model, limits, as_json=as_json)
