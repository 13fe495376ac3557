"""``sleb prune``, ``sleb heal`` and ``sleb stability`` in this process. Imports are lazy."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import (
    HELP,
    AsJson,
    CalibrationOption,
    DomainRatios,
    ModelArgument,
    SourceArgument,
    TaskNames,
    calibration_of,
    check_texts_here,
    heal_from,
    heal_options,
    place_of,
    ratios_by_domain,
    source_of,
    spec_of,
    spec_options,
    tasks_of,
    weighted,
)
from app.terminal import starting
from pruning.config import WorkerSettings
from pruning.spec import InvalidSpec
from pruning.spec.calibration import DEFAULT, CalibrationSpec


@spec_options(*HELP)
def prune(
    model: SourceArgument,
    out: Annotated[
        str | None,
        typer.Option(
            help="Output directory of the checkpoint, or a URL such as s3://BUCKET/STORE/NAME; "
            "by default the model's name with -pruned, in the current directory."
        ),
    ] = None,
    calibration: CalibrationOption = [dataset.value for dataset in DEFAULT],  # noqa: B006 - typer needs a list, and never changes it
    gate_max_perplexity_ratio_of: DomainRatios = [],  # noqa: B006 - as for the calibration
    tasks: TaskNames = None,
    task_data: Annotated[
        Path | None,
        typer.Option(help="Directory with the questions of --tasks, TASK.jsonl each."),
    ] = None,
    state_budget: Annotated[
        str | None,
        typer.Option(help="Maximum size of the hidden-state cache, e.g. 4GiB.", metavar="BYTES"),
    ] = None,
    actors: Annotated[
        int | None,
        typer.Option(help="Number of Ray actors for the search; 0 searches in this process."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the checkpoint at --out after a successful run."),
    ] = False,
    as_json: AsJson = False,
    **values: object,
) -> None:
    """Prune a model in this process, without a server, and write a Hugging Face checkpoint.

    Exactly one of --num-remove, --sparsity, --max-perplexity-ratio, --target-speedup and
    --target-bytes is required. After Ctrl-C, run the same command again to continue where it
    stopped.
    """
    check_texts_here([name for name, _ in map(weighted, calibration)])
    text = calibration_of(calibration, values)
    ratios = ratios_by_domain(gate_max_perplexity_ratio_of)
    spec = spec_of(
        model, text, {**values, "gate_max_perplexity_ratio_of": ratios, "tasks": tasks_of(tasks)}
    )
    options: dict[str, Any] = {
        "state_budget": state_budget,
        "num_actors": actors,
        "task_data_dir": task_data,
    }
    settings = WorkerSettings(
        **{name: value for name, value in options.items() if value is not None}
    )
    with starting():
        from app.commands.prune import run_prune  # imports torch, after the checks above

    place = place_of(out or f"{Path(model).name}-pruned")
    run_prune(spec, place, settings, overwrite=overwrite, as_json=as_json)


@heal_options
def heal(
    checkpoint: Annotated[
        str,
        typer.Argument(help="NAME@JOB in the data directory, or a checkpoint directory."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Output directory; by default the directory of the checkpoint with +healed."
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace the checkpoint at --out after a successful run."),
    ] = False,
    as_json: AsJson = False,
    **values: object,
) -> None:
    """Train a pruned model to match the predictions of its dense parent, and publish the result.

    The dense model must be in the data directory: it is the teacher, and shares its weights with
    the pruned model. After Ctrl-C, run the same command again to continue where it stopped.
    """
    wanted, settings = heal_from(values), WorkerSettings()
    with starting():
        from app.commands.heal import run_heal  # imports torch, after the checks above

    run_heal(wanted, checkpoint, out, settings, overwrite=overwrite, as_json=as_json)


@spec_options(
    *("sampling", "num_samples", "seqlen"),
    *("protect_first", "protect_last", "dtype", "metric", "search", "resident"),
)
def stability(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Output directory for stability.json.")],
    num_remove: Annotated[int, typer.Option(help="Number of blocks to remove.")],
    seeds: Annotated[
        str, typer.Option(help="Comma-separated seeds of the calibration samples.")
    ] = "0,1,2,3",
    calibration: Annotated[
        list[str],
        typer.Option(
            help="Calibration text: prose, code, documentation, wikitext2, c4, self, or a text "
            "or jsonl file; repeatable, each search uses one text.",
            metavar="TEXT",
        ),
    ] = [DEFAULT[0].value],  # noqa: B006 - typer needs a list, and never changes it
    as_json: AsJson = False,
    **values: object,
) -> None:
    """Repeat a search over several samples and texts, and report which removals are stable.

    Runs one search per --calibration and seed, and evaluates every result on held-out text.
    """
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise InvalidSpec(
            "seeds", f"seeds={seeds!r}: expected comma-separated integers, e.g. 0,1,2,3"
        ) from error
    source = {**values, "seed": numbers[0]}
    check_texts_here(calibration)
    texts = {text: source_of(text, source) for text in calibration}
    _check_runs(texts, calibration, numbers)
    spec = spec_of(model, texts[calibration[0]], {**values, "num_remove": num_remove})
    settings = WorkerSettings()
    with starting():
        from app.commands.stability import run_stability  # imports torch, after the checks above

    run_stability(spec, texts, numbers, out, settings, as_json=as_json)


def _check_runs(texts: dict[str, CalibrationSpec], names: list[str], seeds: list[int]) -> None:
    """Check that there are at least two runs, all of them different."""
    if len(texts) < len(names):
        raise InvalidSpec("calibration", "a calibration text is given twice: give each text once")
    if len(set(seeds)) < len(seeds):
        raise InvalidSpec("seeds", f"seeds={seeds}: a seed is given twice: give each seed once")
    if len(texts) * len(seeds) < 2:
        raise InvalidSpec(
            "seeds",
            "only one search given, nothing to compare: give at least two seeds or two texts",
        )
