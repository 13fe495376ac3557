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
        help="NAME, NAME@-3, NAME@JOB or NAME@JOB-3, each optionally with +raw or +int8; or "
        "a directory.",
    ),
]


def evaluate(
    models: Models,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            help="Comma-separated tasks: ppl:prose, ppl:code, ppl:documentation, ppl:wikitext2, "
            "ppl:c4, ppl:FILE, probe, json, zeroshot (the paper's five tasks), slices (generated "
            "tasks of what breaks first), or any lm-eval task. By default probe, json and the "
            "first three texts, or with --task-data its tasks.",
        ),
    ] = None,
    seqlen: Annotated[
        int | None,
        typer.Option(
            help="Tokens per window; by default 2048, or the model's context length if shorter."
        ),
    ] = None,
    num_windows: Annotated[
        int | None, typer.Option(min=1, help="Evaluate only the first windows of each text.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Evaluate only the first samples of each lm-eval task."),
    ] = None,
    texts_dir: Annotated[
        Path | None,
        typer.Option(
            help="Directory with wikitext2-test.txt and c4-validation.jsonl; by default texts "
            "in the data directory."
        ),
    ] = None,
    tasks_dir: Annotated[
        Path | None,
        typer.Option(help="Directory with custom lm-eval tasks [SLEB_TASKS_DIR]."),
    ] = None,
    task_data: Annotated[
        Path | None,
        typer.Option(
            help="Directory with the questions of lm-eval's tasks as TASK.jsonl, which are not "
            "downloaded then. Not with --tasks-dir."
        ),
    ] = None,
    dtype: Annotated[
        Dtype, typer.Option(help="dtype of the weights; auto uses the checkpoint's dtype.")
    ] = "auto",
    resident: Annotated[
        Resident | None,
        typer.Option(
            help="model: load the whole model; stream: load one block at a time. By default, "
            "stream if the model does not fit into memory."
        ),
    ] = None,
    quantize: Annotated[
        Quantize | None,
        typer.Option(
            help="Also evaluate each model with int8 or int4 weights, or with w8a8: int8 "
            "weights and activations."
        ),
    ] = None,
    as_json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option(help="Also write the results to this file, as JSON.")
    ] = None,
) -> None:
    """Measure the quality of models: perplexity, a probe, valid JSON, and lm-eval tasks.

    Perplexities of a pruned model are compared with its dense parent; those of a repaired model
    also with the unrepaired model.
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
