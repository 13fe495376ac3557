"""Options that several commands share, and how the texts of ``--calibration`` are parsed."""

from collections.abc import Sequence
from typing import Annotated

import typer

from pruning.spec.calibration import Calibration, CalibrationMix, CalibrationSpec, Dataset, Sampling
from pruning.spec.prune import Metric, Resident, Search

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text and tables.")]
ModelArgument = Annotated[str, typer.Argument(help="Name in the data directory, or a directory.")]
SamplingOption = Annotated[
    Sampling, typer.Option(help="windows: as in the paper; rows: as in the reference code.")
]
SeqlenOption = Annotated[int, typer.Option(help="Tokens per window.")]
ProtectFirstOption = Annotated[
    int, typer.Option(help="Remaining blocks at the start that are kept.")
]
ProtectLastOption = Annotated[int, typer.Option(help="Remaining blocks at the end that are kept.")]
DtypeOption = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
MetricOption = Annotated[
    Metric,
    typer.Option(help="Metric 3 of the paper, or 1 or 2, which compare with the dense model."),
]
SearchOption = Annotated[
    Search, typer.Option(help="exact, or staged: clearly worse candidates drop out early.")
]
ResidentOption = Annotated[
    Resident, typer.Option(help="model, or stream: read one block at a time from disk.")
]


def calibration_of(
    texts: Sequence[str], sampling: Sampling, num_samples: int, seqlen: int, seed: int
) -> Calibration:
    """One source, or a mix of several. Each text may end in ``=`` and its weight, by default 1.

    Raises ``InvalidSpec``.
    """
    named = [_weighted(text) for text in texts]
    sources = [source_of(name, sampling, num_samples, seqlen, seed) for name, _ in named]
    mix = CalibrationMix(tuple(sources), tuple(weight for _, weight in named))
    return mix if len(sources) > 1 else sources[0]


def source_of(
    text: str, sampling: Sampling, num_samples: int, seqlen: int, seed: int
) -> CalibrationSpec:
    """The source that ``text`` names: a data set, or else a file."""
    is_named = text in set(Dataset) - {Dataset.FILE}
    dataset = Dataset(text) if is_named else Dataset.FILE
    path = None if is_named else text
    return CalibrationSpec(dataset, sampling, num_samples, seqlen, seed, path)


def _weighted(text: str) -> tuple[str, float]:
    """Name and weight. If no number follows the last ``=``, all of the text is the name."""
    name, _, weight = text.rpartition("=")
    try:
        return (name, float(weight)) if name else (text, 1.0)
    except ValueError:
        return text, 1.0
