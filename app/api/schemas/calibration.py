"""The texts in the body of a job: what calibrates, one or a mix by weight, and what evaluates."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Discriminator, Field, Tag

from app.api.schemas.bodies import Body, documented, optional
from pruning.spec.calibration import MAX_SOURCES, CalibrationSpec, Dataset, Sampling
from pruning.spec.evaluation import Evaluation

_ONE, _MIX = "<one>", "<mix>"  # the two forms of a calibration


class CalibrationBody(Body):
    """Calibration text. The packaged texts and ``self`` need no network."""

    dataset: Dataset | None = optional(
        "Data set; by default, equal parts of packaged prose and code."
    )
    sampling: Sampling = documented(
        CalibrationSpec.sampling,
        "How to sample the text: windows, as in the paper; rows, as in its reference code.",
    )
    num_samples: int = documented(
        CalibrationSpec.num_samples,
        "Number of windows, or of rows of raw text.",
        {"minimum": 1, "maximum": 100_000},
    )
    seqlen: int = documented(
        CalibrationSpec.seqlen, "Tokens per window.", {"minimum": 2, "maximum": 1_000_000}
    )
    seed: int = documented(
        CalibrationSpec.seed, "Seed of the sample.", {"minimum": 0, "maximum": 2**32 - 1}
    )
    path: str | None = Field(
        default=CalibrationSpec.path,
        max_length=4096,
        description="File in the texts folder of the service.",
    )


class SourceBody(CalibrationBody):
    """One text of a mix. All texts use the mix's ``num_samples`` and ``seqlen``, and contribute
    samples in proportion to their weights.
    """

    dataset: Dataset = Field(description="The text.")
    weight: float = documented(
        1.0, "Relative weight of the text in the mix.", {"exclusiveMinimum": 0}
    )


def _tag(value: object) -> str:
    return _MIX if isinstance(value, list) else _ONE


OneOrMix = Annotated[
    Annotated[CalibrationBody, Tag(_ONE)]
    | Annotated[list[SourceBody], Tag(_MIX), Field(min_length=1, max_length=MAX_SOURCES)],
    Discriminator(_tag),
    Field(description="One text, or a list of texts to mix by weight."),
]


def without_tags(loc: Sequence[int | str]) -> list[int | str]:
    """Remove the union tags that pydantic adds to the location of an error."""
    return [part for part in loc if part not in (_ONE, _MIX)]


class EvaluationBody(Body):
    """Held-out windows per domain: a fixed number, or as many as the ratios need."""

    # These ranges only document the API: the spec checks them.
    num_samples: int | None = documented(
        Evaluation.num_samples,
        "Windows per domain. If unset, windows are added until the margin is reached, up to 512.",
        {"minimum": 1},
    )
    seqlen: int | None = documented(
        Evaluation.seqlen,
        "Tokens per window. null: 512, or the calibration's seqlen if that is longer, or if the "
        "model or a text is too short.",
        {"minimum": 2},
    )
    margin: float = documented(
        Evaluation.margin,
        "Target precision: windows are added until the 95 % interval of every ratio to "
        "the dense perplexity is within this fraction of the ratio, for each domain "
        "and depth; 0.03 means ±3 %.",
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    )
    max_seconds: float = documented(
        Evaluation.max_seconds,
        "Maximum time in seconds for measuring held-out text; no further windows are "
        "added after it.",
        {"minimum": 0},
    )


EVALUATION = (
    "How much held-out text to measure. Limits of the gate that are still "
    "undecided trigger more text. null: as many windows as the calibration has."
)
