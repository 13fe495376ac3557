"""``sleb stability``: repeat a search over samples of text. Imports are lazy."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli.options import (
    AsJson,
    ModelArgument,
    check_texts_here,
    source_of,
    spec_of,
    spec_options,
    values_of,
)
from app.terminal import starting
from pruning.config import WorkerSettings
from pruning.spec import InvalidSpec
from pruning.spec.calibration import DEFAULT, CalibrationSpec


@spec_options(
    *("sampling", "num_samples", "seqlen"),
    *("protect_first", "protect_last", "dtype", "metric", "search", "resident"),
)
def stability(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(help="Directory for stability.json.")],
    num_remove: Annotated[int, typer.Option(help="How many blocks to remove.")],
    seeds: Annotated[
        str, typer.Option(help="Seeds of the samples, separated by commas.")
    ] = "0,1,2,3",
    calibration: Annotated[
        list[str],
        typer.Option(
            help="prose, code, documentation, wikitext2, c4, self, or a text or jsonl file; "
            "a search uses one of them.",
            metavar="TEXT",
        ),
    ] = [DEFAULT[0].value],  # noqa: B006 - typer needs a list, and never changes it
    as_json: AsJson = False,
    **values: object,
) -> None:
    """Repeat a search over samples and texts, and report which removals are stable.

    Runs one search for every --calibration and every seed, and evaluates all results on other text.
    """
    numbers = _numbers(seeds)
    source = {**values_of(CalibrationSpec, values), "seed": numbers[0]}
    check_texts_here(calibration)
    texts = {text: source_of(text, **source) for text in calibration}
    _check(texts, calibration, numbers)
    spec = spec_of(model, texts[calibration[0]], {**values, "num_remove": num_remove})
    with starting():
        from app.commands.stability import run_stability  # imports torch, after the checks above

    run_stability(spec, texts, numbers, out, WorkerSettings(), as_json=as_json)


def _numbers(seeds: str) -> list[int]:
    try:
        return [int(seed) for seed in seeds.split(",")]
    except ValueError as error:
        raise InvalidSpec("seeds", f"seeds={seeds!r}: expected numbers, as 0,1,2,3") from error


def _check(texts: dict[str, CalibrationSpec], names: list[str], seeds: list[int]) -> None:
    """Check that there are at least two runs, all of them different."""
    if len(texts) < len(names):
        raise InvalidSpec("calibration", "a text is named twice: give each of them once")
    if len(set(seeds)) < len(seeds):
        raise InvalidSpec("seeds", f"seeds={seeds}: give each of them once")
    if len(texts) * len(seeds) < 2:
        raise InvalidSpec("seeds", "one run cannot be compared: give two seeds or two texts")
