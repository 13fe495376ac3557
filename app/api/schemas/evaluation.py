"""How much held-out text a job measures on: the request body, with the defaults of the spec."""

from app.api.schemas.fields import documented
from app.api.schemas.generate import Body
from pruning.spec.evaluation import Evaluation


class EvaluationBody(Body):
    """The held-out windows of each domain: a number, or as many as the ratios need."""

    # These ranges only document the API: the spec checks them.
    num_samples: int | None = documented(
        Evaluation.num_samples,
        "Windows of each domain. Without it, windows are added until the margin is "
        "reached, at most 512.",
        {"minimum": 1},
    )
    seqlen: int | None = documented(
        Evaluation.seqlen, "Tokens per window; null: as in the calibration.", {"minimum": 2}
    )
    margin: float = documented(
        Evaluation.margin,
        "Windows are added until the 95 % interval of each ratio to the dense "
        "perplexity reaches at most this far from it, on each domain and depth; 0.03 is ±3 %.",
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    )
    max_seconds: float = documented(
        Evaluation.max_seconds,
        "Add no windows that would take longer than this in all.",
        {"minimum": 0},
    )


EVALUATION = (
    "How much held-out text is measured; a limit of the gate that is not decided asks for more. "
    "null: as many windows as the calibration has."
)
