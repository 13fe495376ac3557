"""``sleb doctor``. Imports are lazy."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import AsJson

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
    from app.doctor.doctor import diagnose
    from app.doctor.family import family
    from app.doctor.finding import is_healthy, print_findings
    from pruning.models.store import set_up_torch

    set_up_torch()
    findings = diagnose() if model is None else family(model)
    print_findings(findings, as_json=as_json)
    if not is_healthy(findings):
        raise typer.Exit(1)
