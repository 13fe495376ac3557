"""``sleb doctor``. Imports are lazy."""

import typer

from app.cli.options import AsJson


def doctor(
    as_json: AsJson = False,
) -> None:
    """Check whether the service can work on this machine; exit code 1 if something is wrong."""
    from app.doctor.doctor import diagnose
    from app.doctor.finding import is_healthy, print_findings
    from pruning.models.store import set_up_torch

    set_up_torch()
    findings = diagnose()
    print_findings(findings, as_json=as_json)
    if not is_healthy(findings):
        raise typer.Exit(1)
