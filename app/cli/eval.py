"""``sleb eval``: what is measured of which models. Every import of weight is lazy."""

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pruning.spec.prune import Quantize, Resident

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="Names, as NAME, NAME@-3 or NAME@JOB-3, or directories; each gets a column.",
    ),
]


class Dtype(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def evaluate(
    models: Models,
    tasks: Annotated[
        list[str],
        typer.Option(
            help="Comma-separated: ppl:wikitext2, ppl:c4, ppl:FILE, probe, zeroshot (the paper's "
            "five), or any task of lm-eval.",
        ),
    ] = ["probe"],  # noqa: B006 - typer wants it so, and nobody changes it
    seqlen: Annotated[int, typer.Option(help="Tokens per window of perplexity.")] = 2048,
    num_windows: Annotated[
        int | None, typer.Option(min=1, help="Use the first so many windows of a text.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use the first so many samples of a task of lm-eval.")
    ] = None,
    texts_dir: Annotated[
        Path | None,
        typer.Option(help="Where wikitext2-test.txt and c4-validation.jsonl may lie [texts]."),
    ] = None,
    tasks_dir: Annotated[
        Path | None,
        typer.Option(help="A folder with tasks of lm-eval of your own [SLEB_TASKS_DIR]."),
    ] = None,
    dtype: Annotated[Dtype, typer.Option(help="auto is the checkpoint's own.")] = Dtype.AUTO,
    resident: Annotated[
        Resident | None,
        typer.Option(help="model, or stream: one block at a time; by default what fits."),
    ] = None,
    quantize: Annotated[
        Quantize | None,
        typer.Option(help="Each model with weights of 8 or 4 bits as well, its parent in front."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON into this file as well.")] = None,
) -> None:
    """Ask whether pruned models are still good: perplexity, a probe, and tasks of lm-eval."""
    from app.commands.evaluate import Options, Tasks, run_evaluation
    from pruning.config import Settings

    settings = Settings()
    tasks_dir = tasks_dir or settings.tasks_dir
    parsed = Tasks.parse([name for given in tasks for name in given.split(",")])
    run_evaluation(
        models,
        replace(parsed, seqlen=seqlen, num_windows=num_windows, tasks_dir=tasks_dir, limit=limit),
        Options(dtype.value, resident, texts_dir, quantize),
        settings,
        as_json=as_json,
        out=out,
    )
