"""The request body of a quality gate, whose ranges the spec checks."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from app.api.schemas.bodies import Body, documented, with_field
from pruning.spec.evaluation import Gate, GateAction

_NUMBER: dict[str, Any] = {"type": "number"}


class GateBody(Body):
    """Limits on the quality loss of the removal order. At least one limit is required."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                with_field("max_probe_drop", _NUMBER),
                with_field("max_perplexity_ratio", _NUMBER),
                with_field("max_perplexity_ratio_of", {"minProperties": 1}),
                with_field("min_task_share", _NUMBER),
            ]
        }
    )

    max_probe_drop: float | None = documented(
        Gate.max_probe_drop,
        "Maximum drop of the probe score, from 0 to 1.",
        {"minimum": 0, "exclusiveMaximum": 1},
    )
    max_perplexity_ratio: float | None = documented(
        Gate.max_perplexity_ratio,
        "Maximum ratio of pruned to dense perplexity on held-out text; requires evaluate.",
        {"minimum": 1},
    )
    max_perplexity_ratio_of: dict[
        str, Annotated[float, Field(json_schema_extra={"minimum": 1})]
    ] = Field(
        default_factory=dict,
        description='The same limit for individual text domains, e.g. {"code": 1.5}. The domains '
        "of a job are those of its calibration and the packaged ones.",
    )
    min_task_share: float | None = documented(
        Gate.min_task_share,
        "Minimum share of the dense model's accuracy above chance on every one of the tasks; "
        "requires tasks.",
        {"minimum": 0, "maximum": 1},
    )
    action: GateAction = documented(
        Gate.action,
        "Action when a limit is exceeded. warn: publish, with a warning in the "
        "manifest and the events; refuse: do not publish, and fail the job with "
        "quality_gate; deepest: publish as many removals as are shown to meet every "
        "limit, and fail if none are.",
    )
