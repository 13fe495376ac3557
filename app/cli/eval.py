"""``sleb eval``: measure the quality of models. Imports are lazy."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import AsJson
from app.terminal import starting
from pruning.config import WorkerSettings
from pruning.spec.prune import Dtype, Quantize, Resident

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL...",
        help="NAME, NAME@-3, NAME@JOB, NAME@JOB-3, each also with +raw or +int8, or directories.",
    ),
]


def evaluate(
    models: Models,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Comma-separated: ppl:prose, ppl:code, ppl:documentation, ppl:wikitext2, ppl:c4, "
            "ppl:FILE, probe, json, zeroshot (the paper's five tasks), or any task of lm-eval. "
            "By default probe, json and the first three texts, or with --task-data its tasks.",
        ),
    ] = None,
    seqlen: Annotated[
        int | None,
        typer.Option(help="Tokens per window of a text: 2048, or what the model takes if less."),
    ] = None,
    num_windows: Annotated[
        int | None, typer.Option(min=1, help="Use only the first windows of a text.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use only the first samples of a task of lm-eval.")
    ] = None,
    texts_dir: Annotated[
        Path | None,
        typer.Option(help="Has wikitext2-test.txt and c4-validation.jsonl; by default texts."),
    ] = None,
    tasks_dir: Annotated[
        Path | None,
        typer.Option(help="Directory with your own tasks for lm-eval [SLEB_TASKS_DIR]."),
    ] = None,
    task_data: Annotated[
        Path | None,
        typer.Option(
            help="Directory with the questions of lm-eval's tasks as TASK.jsonl, which are not "
            "downloaded then. Not with --tasks-dir."
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="Of the weights; auto is the checkpoint's own.")
    ] = "auto",
    resident: Annotated[
        Resident | None,
        typer.Option(
            help="model, or stream: one block at a time; by default stream if it does not fit."
        ),
    ] = None,
    quantize: Annotated[
        Quantize | None,
        typer.Option(
            help="Measure each model with weights of 8 or 4 bits too, beside its dense parent."
        ),
    ] = None,
    as_json: AsJson = False,
    out: Annotated[Path | None, typer.Option(help="Write the JSON into this file too.")] = None,
) -> None:
    """Measure the quality of models: perplexity, a probe, valid JSON, and tasks of lm-eval.

    On texts, a pruned model is compared with its dense parent, and a repaired one also with its
    raw form.
    """
    if tasks_dir is not None and task_data is not None:
        raise typer.BadParameter("name --tasks-dir or --task-data, not both")
    settings = WorkerSettings()
    with starting():
        from app.commands.evaluate import Tasks, run_evaluation

    wanted = replace(
        Tasks.parse_lists(tasks, task_data),
        seqlen=seqlen,
        num_windows=num_windows,
        tasks_dir=tasks_dir or settings.tasks_dir,
        task_data=task_data,
        limit=limit,
        dtype=dtype,
        resident=resident,
        texts_dir=texts_dir,
        quantize=quantize,
    )
    run_evaluation(models, wanted, settings, as_json=as_json, out=out)
