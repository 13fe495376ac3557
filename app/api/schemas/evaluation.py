"""How much held-out text a job measures on: the request body, with the defaults of the spec."""

from pydantic import Field

from app.api.schemas.generate import Body
from pruning.spec.evaluation import Evaluation


class EvaluationBody(Body):
    """The held-out windows of each domain: a number, or as many as the ratios need."""

    # These ranges only document the API: the spec checks them.
    num_samples: int | None = Field(
        default=Evaluation.num_samples,
        description="Windows of each domain. Without it, windows are added until the margin is "
        "reached, at most 512.",
        json_schema_extra={"minimum": 1},
    )
    seqlen: int | None = Field(
        default=Evaluation.seqlen,
        description="Tokens per window; null: as in the calibration.",
        json_schema_extra={"minimum": 2},
    )
    margin: float = Field(
        default=Evaluation.margin,
        description="Windows are added until the 95 % interval of each ratio to the dense "
        "perplexity reaches at most this far from it, on each domain and depth; 0.03 is ±3 %.",
        json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    )
    max_seconds: float = Field(
        default=Evaluation.max_seconds,
        description="Add no windows that would take longer than this in all.",
        json_schema_extra={"minimum": 0},
    )


EVALUATION = (
    "How much held-out text is measured; a limit of the gate that is not decided asks for more. "
    "null: as many windows as the calibration has."
)
