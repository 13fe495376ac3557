"""``sleb doctor`` as the user types it. Imports are lazy."""

from typing import Annotated

import typer


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Look for what may keep the service from working here; exits with 1 if something is wrong."""
    from app.doctor.doctor import diagnose
    from app.doctor.finding import is_healthy, print_findings
    from pruning.models.store import set_up_torch

    set_up_torch()
    findings = diagnose()
    print_findings(findings, as_json=as_json)
    if not is_healthy(findings):
        raise typer.Exit(1)
