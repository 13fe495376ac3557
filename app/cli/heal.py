"""``sleb heal``: heal a pruned checkpoint in this process. Imports are lazy."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import AsJson, heal_from, heal_options
from app.terminal import starting
from pruning.config import WorkerSettings


@heal_options
def heal(
    checkpoint: Annotated[
        str,
        typer.Argument(help="NAME@JOB in the data directory, or the directory of a checkpoint."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Directory to publish in; by default that of the checkpoint +healed."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the checkpoint at --out at the end.")
    ] = False,
    as_json: AsJson = False,
    **values: object,
) -> None:
    """Train a pruned model to predict what its dense parent predicts, and publish the result.

    The dense model has to be there: it teaches, and shares its weights with the pruned one. After
    Ctrl-C, the same command goes on where it stopped.
    """
    wanted = heal_from(values)
    with starting():
        from app.commands.heal import run_heal  # imports torch, after the checks above

    run_heal(wanted, checkpoint, out, WorkerSettings(), overwrite=overwrite, as_json=as_json)
