"""The response body of advice: what to take of a model."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.api.schemas.bodies import kind


class LimitsView(BaseModel):
    max_ratio: float = Field(
        description="Maximum perplexity relative to the dense model, on every text."
    )
    min_speedup: float = Field(description="Minimum speed-up.")
    min_probe: float | None = Field(description="Minimum probe score; null for no limit.")
    min_task_share: float | None = Field(
        description="Minimum share of the dense model's accuracy above chance on zero-shot tasks; "
        "null for no limit."
    )


class EstimateWithEnds(BaseModel):
    value: float = Field(description="Point estimate.")
    low: float | None = Field(description="Lower bound of the 95 % interval; null if unknown.")
    high: float | None = Field(description="Upper bound of the 95 % interval; null if unknown.")


class TaskResultView(BaseModel):
    accuracy: float = Field(description="Share of right answers, 0 to 1.")
    dense_accuracy: float = Field(description="That of the dense model to the same questions.")
    chance: float = Field(description="Accuracy of random answers.")
    num_questions: int = Field(description="Number of questions.")
    num_available: int = Field(description="Number of questions that the task has.")
    flips: float = Field(description="Share of the answers that became right or wrong.")
    share: EstimateWithEnds | None = Field(
        description="Share of the dense model's accuracy above chance; null if that is not surely "
        "above chance."
    )
    standard_error: float = Field(description="Standard error of accuracy.")
    dense_standard_error: float = Field(description="Standard error of dense_accuracy.")


class TaskSharesView(BaseModel):
    share: EstimateWithEnds | None = Field(
        description="Share of the dense model's mean accuracy above chance; null if that is not "
        "surely above chance."
    )
    worst_task: str | None = Field(description="The task with the lowest share.")
    worst: EstimateWithEnds | None = Field(description="The share of that task.")
    by_task: dict[str, TaskResultView] = Field(description="Each task.")


class LoadView(BaseModel):
    name: str = Field(description="One of stream, a number of streams, or prompt.")
    words: str = Field(description='The load in words, which follow "as fast".')
    taken: str | None = Field(
        description="What to take there; null for the dense model, or if nothing was measured."
    )


class StepRequestView(BaseModel):
    """A request to this service."""

    method: Literal["POST", "PUT"] = Field(description="Method of the request.")
    path: str = Field(description="Path of the request.")
    body: dict[str, Any] = Field(description="Body of the request.")


class NextStepView(BaseModel):
    words: str = Field(description="What to do, in words.")
    command: str = Field(description="The command that does it.")
    request: StepRequestView | None = Field(
        description="The request that does the same; null if only the command can do it."
    )


class AdvisedDepthView(BaseModel):
    name: str = Field(description="Model name for generation requests.")
    short_name: str = Field(description="The name without the model, e.g. @-3.")
    num_removed: int = Field(description="Number of removed blocks; 0 for int8 of all blocks.")
    is_int8: bool = Field(description="Whether it has int8 weights.")
    is_healed: bool = Field(description="Whether it is healed.")
    num_blocks: int = Field(description="Number of remaining blocks.")
    speedup: EstimateWithEnds | None = Field(
        description="Speed-up per token at the first of the loads; null if unknown."
    )
    is_measured: bool = Field(
        description="Whether the speed-up was measured; otherwise it is predicted."
    )
    speeds: dict[str, EstimateWithEnds] = Field(
        description="Speed-up over the dense model, by the name of the load."
    )
    ratios: dict[str, EstimateWithEnds] = Field(
        description="Perplexity relative to the dense model, by text domain."
    )
    parameters: float | None = Field(
        description="Number of parameters relative to the dense model; null if unknown."
    )
    probe_score: float | None = Field(description="Probe score; null if not measured.")
    dense_probe_score: float | None = Field(description="Probe score of the dense model.")
    tasks: TaskSharesView | None = Field(
        description="Tasks beside the dense model, by its job or `sleb eval`; null if not measured."
    )
    verdict: Literal["kept", "exceeded", "undecided"] = Field(
        description="Whether it meets the limits at the load where it is fastest, judged by its "
        "intervals."
    )
    failing: list[str] = Field(
        description="Limits that the depth does not meet: speed, quality, a text domain, probe, "
        "tasks, or one task."
    )
    because: str = Field(description="Why the depth does not meet the limits; empty if it does.")


class AdviceView(BaseModel):
    """What to take of a model: int8 weights, a pruned depth, both, or the dense model."""

    object: Literal["advice"] = kind("advice")
    model: str = Field(description="The dense model.")
    limits: LimitsView = Field(description="Limits that a depth must meet.")
    loads: list[LoadView] = Field(description="Loads at which something is known.")
    taken: str | None = Field(
        description="What to take at the first load; null for the dense model."
    )
    nearest: str | None = Field(
        description="The candidate that comes nearest to the limits if none is taken there."
    )
    sentence: str = Field(description="The recommendation in words.")
    depths: list[AdvisedDepthView] = Field(
        description="All candidates, those of all jobs: int8 weights, depths, and depths with int8 "
        "weights, least pruned first."
    )
    undecided: list[str] = Field(description="What more measurements could change.")
    next_step: NextStepView | None = Field(description="What to do next; null for nothing.")
