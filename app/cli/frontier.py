"""``sleb frontier``: which way to make a model cheaper. Imports are lazy."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import AsJson, MinTaskShare
from app.terminal import starting
from pruning.config import Settings
from pruning.evaluation.limits import Limits


def frontier(
    model: Annotated[str, typer.Argument(help="A dense model of the data directory.")],
    loads: Annotated[
        str, typer.Option(help="Loads to measure: stream, a number of streams, or prompt.")
    ] = "stream,8,32,prompt",
    max_ratio: Annotated[
        float, typer.Option(help="Maximum of its / dense perplexity, on every text.")
    ] = Limits.max_ratio,
    min_speedup: Annotated[
        float, typer.Option(help="Minimum speed-up of what is worth taking.")
    ] = Limits.min_speedup,
    min_task_share: MinTaskShare = Limits.min_task_share,
    price_per_hour: Annotated[
        float | None,
        typer.Option(min=0, help="Price of this machine, for the price of a million tokens."),
    ] = None,
    max_minutes: Annotated[
        float, typer.Option(min=0, help="Stop after this time, and say what is not decided.")
    ] = 20,
    out: Annotated[Path | None, typer.Option(help="File to write the results to, as JSON.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure int8, every published depth and both together, and say what to take.

    All candidates take turns with the dense model on each load. Those that lose too much or are
    surely slower get few turns. What is measured is kept in the data directory.
    """
    limits = Limits(max_ratio, min_speedup, min_task_share=min_task_share)
    with starting():
        from app.commands.frontier import run_frontier
        from app.frontier.run import Asked

    asked = Asked(model, loads, limits, max_minutes, price_per_hour)
    out = out and out.expanduser().absolute()
    run_frontier(asked, Settings(), as_json=as_json, out=out)
