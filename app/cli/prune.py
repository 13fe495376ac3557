"""``sleb prune``: prune a model in this process. Imports are lazy."""

from pathlib import Path
from typing import Annotated, Any

import typer

from app.cli.options import (
    HELP,
    AsJson,
    CalibrationOption,
    DomainRatios,
    SourceArgument,
    calibration_of,
    check_texts_here,
    place_of,
    ratios_by_domain,
    spec_of,
    spec_options,
    values_of,
    weighted,
)
from app.terminal import starting
from pruning.config import WorkerSettings
from pruning.spec.calibration import DEFAULT, CalibrationSpec


@spec_options(*HELP)
def prune(
    model: SourceArgument,
    out: Annotated[
        str | None,
        typer.Option(
            help="Directory for the checkpoint, or a URL as s3://BUCKET/STORE/NAME; by default the "
            "name of the model with -pruned, in this directory."
        ),
    ] = None,
    calibration: CalibrationOption = [dataset.value for dataset in DEFAULT],  # noqa: B006 - typer needs a list, and never changes it
    gate_max_perplexity_ratio_of: DomainRatios = [],  # noqa: B006 - as for the calibration
    state_budget: Annotated[
        str | None,
        typer.Option(help="Maximum size of cached hidden states, as 4GiB.", metavar="BYTES"),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(help="Ray actors for the search, 0 for none.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the checkpoint at --out at the end.")
    ] = False,
    as_json: AsJson = False,
    **values: object,
) -> None:
    """Prune a model in this process, without a server, and write a Hugging Face checkpoint.

    Exactly one of --num-remove, --sparsity, --max-perplexity-ratio, --target-speedup and
    --target-bytes is needed.
    After Ctrl-C, the same command goes on where it stopped.
    """
    check_texts_here([name for name, _ in map(weighted, calibration)])
    text = calibration_of(calibration, **values_of(CalibrationSpec, values))
    ratios = ratios_by_domain(gate_max_perplexity_ratio_of)
    spec = spec_of(model, text, {**values, "gate_max_perplexity_ratio_of": ratios})
    options: dict[str, Any] = {"state_budget": state_budget, "num_actors": actors}
    settings = WorkerSettings(
        **{name: value for name, value in options.items() if value is not None}
    )
    with starting():
        from app.commands.prune import run_prune  # imports torch, after the checks above

    place = place_of(out or f"{Path(model).name}-pruned")
    run_prune(spec, place, settings, overwrite=overwrite, as_json=as_json)
