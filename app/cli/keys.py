"""``sleb keys``: the API keys of a data directory. Imports are lazy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer
from pydantic import ByteSize
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.auth.keys import NO_QUOTA, ApiKey, KeyFile, Quota, Scope
from app.cli.options import AsJson, WholeHelp, num_bytes
from app.config import serve_settings
from app.terminal import filled, local_time, plain_table, print_json

keys = typer.Typer(
    cls=WholeHelp,
    no_args_is_help=True,
    help="Create, rotate, list and revoke API keys, and set the quotas of tenants.",
)

_TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M%z"]

Name = Annotated[str, typer.Argument(help="Name of the key in logs and commands; not secret.")]


@keys.command()
def create(
    name: Name,
    scope: Annotated[list[Scope], typer.Option(help="Scope of the key; repeatable.")],
    rate: Annotated[
        int | None,
        typer.Option(
            min=0, max=100_000, help="Maximum requests per minute; 0 for no limit [SLEB_KEY_RATE]."
        ),
    ] = None,
    concurrent: Annotated[
        int | None,
        typer.Option(
            min=0, help="Maximum concurrent generations; 0 for no limit [SLEB_KEY_CONCURRENT]."
        ),
    ] = None,
    tenant: Annotated[
        str | None,
        typer.Option(
            help="Tenant that owns this key's jobs and checkpoints; keys of one team can share "
            "a tenant [the key's name]."
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(
            formats=_TIMES, help="Expiry time, in local time unless it has a UTC offset [never]."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and print it once; only its hash is stored.

    Scopes: generate permits /generate, /compare and /v1; jobs permits /prune-jobs; admin permits
    everything.
    """
    scopes, ends = sorted(set(scope)), None if until is None else until.timestamp()
    file = _audited("create", name, scopes=scopes, tenant=tenant or name, expires_at=ends)
    key = file.create(
        name,
        scope,
        rate_per_min=rate,
        max_concurrent=concurrent,
        tenant=tenant,
        expires_at=ends,
    )
    _print_new(name, scope, key, as_json=as_json)


@keys.command()
def rotate(
    name: Name,
    overlap: Annotated[
        float, typer.Option(min=0, help="Hours for which the old key remains valid.")
    ] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Replace a key and print the new one once; the old key expires after the overlap."""
    file = _audited("rotate", name, overlap_h=overlap)
    key = file.rotate(name, overlap * 3600)
    scopes = next(each.scopes for each in file.known() if each.name == name)
    _print_new(name, scopes, key, as_json=as_json)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List keys with their scopes, limits and creation times, and the quotas of tenants."""
    file = _file()
    known_keys, quotas = file.known(), file.quotas()
    if as_json:
        print_json([_row(key) for key in known_keys])
        return
    if not known_keys:
        typer.echo("no keys: create one with sleb keys create NAME --scope SCOPE")
    else:
        _print_keys(known_keys)
    if quotas:
        _print_quotas(quotas)


def _print_keys(keys: Sequence[ApiKey]) -> None:
    table = plain_table(padding=(0, 2, 0, 0))
    has_tenants = any(key.tenant for key in keys)  # else the table is narrower
    tenant_heading = ("tenant",) if has_tenants else ()
    for heading in ("name", *tenant_heading, "scopes"):
        table.add_column(heading, overflow="fold")
    for heading in ("per minute", "at once", "created", "ends"):
        table.add_column(heading, no_wrap=heading in {"created", "ends"})
    for key in keys:
        names = map(escape, (key.name, key.owner) if has_tenants else (key.name,))
        limits = map(_limit, (key.rate_per_min, key.max_concurrent))
        end = "never" if key.expires_at is None else local_time(key.expires_at)[:16]
        times = (local_time(key.created_at)[:10], end)
        table.add_row(*names, "\n".join(sorted(key.scopes)), *limits, *times)
    Console(highlight=False).print(table)


@keys.command()
def quota(
    tenant: Annotated[
        str,
        typer.Argument(
            help="Tenant, as set by --tenant; for keys without one, the name of the key."
        ),
    ],
    queued: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Maximum queued and paused jobs; 0 for no limit [SLEB_TENANT_QUEUED_JOBS].",
        ),
    ] = None,
    running: Annotated[
        int | None,
        typer.Option(
            min=0, help="Maximum running jobs; 0 for no limit [SLEB_TENANT_RUNNING_JOBS]."
        ),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            help="Maximum total size of checkpoints, e.g. 10GB; 0 for no limit "
            "[SLEB_TENANT_CHECKPOINT_BYTES].",
            metavar="BYTES",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Maximum prompt and output tokens per minute; 0 for no limit "
            "[SLEB_TENANT_TOKENS_PER_MIN].",
        ),
    ] = None,
    reset: Annotated[
        bool, typer.Option("--reset", help="Clear this tenant's quotas first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Set quotas that all keys of a tenant share. Without options, print them."""
    num_checkpoint_bytes = None if checkpoints is None else num_bytes(checkpoints, least=0)
    changes = Quota(queued, running, num_checkpoint_bytes, tokens)
    if reset or changes.limits():
        file = _audited("quota", tenant, reset=reset, **changes.limits())
        changed = file.change_quota(tenant, changes, is_reset=reset)
    else:
        file = _file()
        changed = file.quotas().get(tenant, NO_QUOTA)
    if as_json:
        print_json({"tenant": tenant, **asdict(changed)})
        return
    _print_quotas({tenant: changed})
    if all(key.owner != tenant for key in file.known()):
        typer.echo(f"tenant {tenant!r} has no keys", err=True)


@keys.command()
def revoke(name: Name, as_json: AsJson = False) -> None:
    """Revoke a key. Running services reject it from the next request on."""
    _audited("revoke", name).revoke(name)
    if as_json:
        print_json({"name": name, "revoked": True})
    else:
        typer.echo(f"revoked key {name!r}")


def _print_quotas(quotas: Mapping[str, Quota]) -> None:
    headings = ("tenant", "queued jobs", "running jobs", "checkpoints", "tokens per minute")
    rows = []
    for tenant, own in quotas.items():
        size = own.checkpoint_bytes
        shown_size = ByteSize(size).human_readable(decimal=True) if size else _limit(size)
        limits = map(_limit, (own.queued_jobs, own.running_jobs))
        rows.append((tenant, *limits, shown_size, _limit(own.tokens_per_min)))
    table = filled(Table(box=SIMPLE_HEAD), headings, rows, headings)
    Console(highlight=False).print(table)


def _print_new(name: str, scopes: Iterable[Scope], key: str, *, as_json: bool) -> None:
    permitted = sorted(set(scopes))
    if as_json:
        print_json({"name": name, "scopes": permitted, "key": key})
        return
    typer.echo(key)
    typer.echo(f"key {name!r} with scopes {', '.join(permitted)}", err=True)
    typer.echo(
        "save it now, it is not shown again; clients send it as Authorization: Bearer KEY", err=True
    )


def _file() -> KeyFile:
    return KeyFile(serve_settings().keys_file)


def _audited(command: str, name: str, **fields: object) -> KeyFile:
    """The keys, once it is noted what is about to be done to them. Raises ``AuditUnavailable``."""
    from app.auth.audit import AuditLog

    settings = serve_settings()
    if settings.audit_log is not None:
        AuditLog(settings.audit_log).commanded(f"keys {command}", {"name": name, **fields})
    return KeyFile(settings.keys_file)


def _row(key: ApiKey) -> dict[str, Any]:
    """Field by field, so that no later one is printed unasked: the hash is not."""
    return {
        "name": key.name,
        "scopes": sorted(key.scopes),
        "rate_per_min": key.rate_per_min,
        "max_concurrent": key.max_concurrent,
        "tenant": key.owner,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "quota": key.quota,
    }


def _limit(limit: int | None) -> str:
    return "default" if limit is None else str(limit or "unlimited")
