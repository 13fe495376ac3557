"""``sleb frontier``: which way to make a model cheaper. Imports are lazy."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import AsJson, MinTaskShare, tasks_of
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
    tasks: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated tasks that dense and candidates answer. By default the generated "
            "ones and those with a file in --task-data; an empty text for none.",
            metavar="TASK,...",
        ),
    ] = None,
    task_questions: Annotated[
        int, typer.Option(help="Questions of each task, the first ones.")
    ] = 100,
    task_data: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Directory with the questions of lm-eval's tasks as TASK.jsonl "
            "[SLEB_TASK_DATA_DIR].",
        ),
    ] = None,
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

    Candidates that may be within the limits answer tasks. All take turns with the dense model on
    each load; those that lose too much or are surely slower get few turns. What is measured is kept
    in the data directory.
    """
    limits = Limits(max_ratio, min_speedup, min_task_share=min_task_share)
    with starting():
        from app.commands.frontier import run_frontier
        from app.frontier.run import Asked
        from app.frontier.tasks import TaskPlan
        from pruning.evaluation.task_sources import TaskSources

    settings = Settings()
    sources = TaskSources(task_data or settings.task_data_dir)
    names = sources.offline if tasks is None else tasks_of(tasks)
    plan = TaskPlan(names, task_questions, sources)
    asked = Asked(model, loads, limits, max_minutes, price_per_hour, plan)
    out = out and out.expanduser().absolute()
    run_frontier(asked, settings, as_json=as_json, out=out)
