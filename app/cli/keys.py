"""``sleb keys``: the API keys of a data directory. Imports are lazy."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.auth.keys import ApiKey, KeyFile, Scope
from app.cli.options import AsJson
from app.terminal import print_json

keys = typer.Typer(
    no_args_is_help=True,
    help="Create, list and revoke the keys that clients of the HTTP API send.",
)

Name = Annotated[str, typer.Argument(help="Name of the key in logs and commands; not secret.")]


@keys.command()
def create(
    name: Name,
    scope: Annotated[list[Scope], typer.Option(help="What the key permits; may be repeated.")],
    rate: Annotated[
        int | None,
        typer.Option(
            min=0, max=100_000, help="Requests per minute, 0 for no limit [SLEB_KEY_RATE]."
        ),
    ] = None,
    concurrent: Annotated[
        int | None,
        typer.Option(min=0, help="Concurrent generations, 0 for no limit [SLEB_KEY_CONCURRENT]."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it once: only its hash is stored.

    generate: /generate, /compare, /v1. jobs: /prune-jobs. admin: everything.
    """
    key = _file().create(name, scope, rate_per_min=rate, max_concurrent=concurrent)
    if as_json:
        print_json({"name": name, "scopes": sorted(set(scope)), "key": key})
        return
    typer.echo(key)
    typer.echo(
        f"this is the key {name!r} for {', '.join(sorted(set(scope)))}; it is not shown again. "
        "Clients send it as Authorization: Bearer KEY",
        err=True,
    )


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List names, scopes, limits and times of creation."""
    found = _file().known()
    if as_json:
        print_json([_row(key) for key in found])
        return
    table = Table(box=SIMPLE_HEAD)
    for heading in ("name", "scopes", "per minute", "concurrent", "created"):
        table.add_column(heading)
    for key in found:
        created = datetime.fromtimestamp(key.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        limits = map(_limit, (key.rate_per_min, key.max_concurrent))
        table.add_row(escape(key.name), ", ".join(sorted(key.scopes)), *limits, created)
    Console(highlight=False).print(table)


@keys.command()
def revoke(name: Name, as_json: AsJson = False) -> None:
    """Revoke a key. Running services refuse it from their next request on."""
    _file().revoke(name)
    if as_json:
        print_json({"name": name, "revoked": True})
    else:
        typer.echo(f"revoked the key {name!r}")


def _file() -> KeyFile:
    from app.config import serve_settings

    return KeyFile(serve_settings().keys_file)


def _row(key: ApiKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "scopes": sorted(key.scopes),
        "rate_per_min": key.rate_per_min,
        "max_concurrent": key.max_concurrent,
        "created_at": key.created_at,
    }


def _limit(limit: int | None) -> str:
    return "default" if limit is None else str(limit or "unlimited")
