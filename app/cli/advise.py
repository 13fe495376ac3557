"""``sleb advise``: which depth of a model to take. Imports are lazy."""

from typing import Annotated

import typer

from app.cli.options import AsJson
from app.config import serve_settings
from pruning.evaluation.advice import Limits


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
    from app.commands.advise import print_advice

    print_advice(serve_settings(), model, limits, as_json=as_json)
