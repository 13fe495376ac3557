"""``sleb keys``: who may ask the service of a data directory for what. Imports are lazy."""

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.auth.keys import ApiKey, KeyFile, Scope
from app.terminal import print_json

keys = typer.Typer(
    no_args_is_help=True,
    help="Make, list and revoke the keys that clients of the HTTP API send.",
)

Name = Annotated[str, typer.Argument(help="For logs and for `sleb keys revoke`; no secret.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@keys.command()
def create(
    name: Name,
    scope: Annotated[list[Scope], typer.Option(help="What it is good for; may be repeated.")],
    rate: Annotated[
        int | None,
        typer.Option(min=0, max=100_000, help="Requests a minute, 0 for any [SLEB_KEY_RATE]."),
    ] = None,
    concurrent: Annotated[
        int | None,
        typer.Option(min=0, help="Generations at once, 0 for any [SLEB_KEY_CONCURRENT]."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept.

    generate: /generate, /compare, /v1. jobs: /prune-jobs. admin: everything.
    """
    key = _file().create(name, scope, rate_per_min=rate, max_concurrent=concurrent)
    if as_json:
        print_json({"name": name, "scopes": sorted(set(scope)), "key": key})
        return
    typer.echo(key)
    typer.echo(
        f"the key {name!r}, for {', '.join(sorted(set(scope)))}: it is not shown again; clients "
        "send it as Authorization: Bearer KEY",
        err=True,
    )


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List names, scopes, limits and when each was made."""
    found = _file().known()
    if as_json:
        print_json([_row(key) for key in found])
        return
    table = Table(box=SIMPLE_HEAD)
    for heading in ("name", "scopes", "a minute", "at once", "created"):
        table.add_column(heading)
    for key in found:
        created = datetime.fromtimestamp(key.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        limits = map(_shown, (key.rate_per_min, key.max_concurrent))
        table.add_row(escape(key.name), ", ".join(sorted(key.scopes)), *limits, created)
    Console(highlight=False).print(table)


@keys.command()
def revoke(name: Name, as_json: AsJson = False) -> None:
    """Take a key back: running services refuse it from their next request on."""
    _file().revoke(name)
    if as_json:
        print_json({"name": name, "revoked": True})
    else:
        typer.echo(f"the key {name!r} is good for nothing any more")


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


def _shown(limit: int | None) -> str:
    return "as set" if limit is None else str(limit or "any")
