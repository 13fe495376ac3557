"""``sleb doctor``. Imports are lazy."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from app.cli.options import AsJson
from app.terminal import starting

ModelDirectory = Annotated[
    Path | None,
    typer.Argument(metavar="[MODEL]", help="A directory: check only this model, by its config."),
]


def doctor(
    model: ModelDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Check whether the service can work on this machine; exit code 1 if something is wrong.

    With MODEL, tell whether this model is supported, how it is served, and what repairs it allows.
    """
    with starting():
        from app.doctor.doctor import diagnose
        from app.doctor.finding import print_findings
        from app.doctor.models import family
        from pruning.models.store import set_up_torch

        set_up_torch()
    console = Console(highlight=False)
    with console.status("Checking") as status:
        findings = (
            family(model)
            if model is not None
            else diagnose(lambda what: status.update(f"Checking {what}"))
        )
        is_fine = print_findings(findings, console, as_json=as_json)
    if not is_fine:
        raise typer.Exit(1)
