"""Request and response bodies of the job routes. The spec checks the ranges of a job."""

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.api.schemas.calibration import CalibrationBody, OneOrMix
from app.api.schemas.generate import Body, DomainView, ModelName, RepairView
from pruning.jobs.job import FINAL_EVENTS, WebhookEvent
from pruning.spec.gate import Gate, GateAction
from pruning.spec.prune import (
    TARGETS,
    Dtype,
    Metric,
    PruneSpec,
    Quantize,
    Repair,
    Resident,
    Search,
)


class ProgressView(BaseModel):
    evaluations_done: int
    evaluations_total: int
    ratio: float


class RepairProgressView(BaseModel):
    steps_done: int
    steps_total: int
    ratio: float


class JobErrorView(BaseModel):
    code: str
    message: str
    param: str | None


class ConditionView(BaseModel):
    """A condition in the sense of Kubernetes, one per state that the job is or was in.

    ``last_transition_at`` is null if the record does not contain it.
    """

    type: Literal["Queued", "Running", "Paused", "Succeeded", "Failed", "Cancelled"]
    status: Literal["True", "False"]
    last_transition_at: float | None
    reason: str
    message: str


class WebhookView(BaseModel):
    url: str
    events: list[WebhookEvent]


class PruneJobView(BaseModel):
    id: str
    object: Literal["prune_job"] = "prune_job"
    model: str
    status: str
    priority: int
    pause_requested_at: float | None = Field(
        description="Set while a running job is about to pause."
    )
    phase: str | None
    progress: ProgressView
    repair_progress: RepairProgressView | None = Field(
        description="Of the latest attempt; null before the repair begins."
    )
    removed_blocks: list[int]
    losses: list[float]
    dense_loss: float | None
    attempt: int
    worker: str | None
    pruned_model: str | None
    repair: RepairView | None = Field(
        description="Of pruned_model; null until published, or without repair."
    )
    domains: list[DomainView] = Field(
        description="Quality of pruned_model by domain; empty until published, or if the job "
        "measured none. Each prefix has its own, see checkpoints."
    )
    created_at: float
    started_at: float | None
    finished_at: float | None
    estimated_finish: float | None = Field(
        description="Of the search or of the repair, while either is running."
    )
    error: JobErrorView | None
    conditions: list[ConditionView]
    metadata: dict[str, str]
    webhook: WebhookView | None
    spec: dict[str, Any]
    urls: dict[str, str]


class EstimateView(BaseModel):
    """What a job would need. Bytes count weights and hidden states only."""

    object: Literal["prune_job.estimate"] = "prune_job.estimate"
    model: str
    evaluations_total: int
    is_upper_bound: bool = Field(
        description="True if the search decides how many evaluations it needs."
    )
    estimated_s: float | None = Field(description="Null without a similar earlier job.")
    estimated_from: list[str] = Field(
        description="The earlier jobs used: same model, search and windows."
    )
    weight_bytes: int
    state_bytes: int | None = Field(
        description="Hidden states at full speed; null where the text decides how many windows."
    )
    least_state_bytes: int = Field(description="Minimum for the search to run.")
    checkpoint_bytes: int = Field(description="Of its weights at most, on disk.")
    repair_bytes: int = Field(description="Of the repairs of all depths at most, on disk.")
    free_disk_bytes: int


class CheckpointFileView(BaseModel):
    name: str
    num_bytes: int
    sha256: str
    url: str


class PrefixView(BaseModel):
    """The dense model without the first blocks of a removal order."""

    model: str = Field(description="The name to generate with.")
    num_removed: int
    removed_block: int = Field(description="The block removed last.")
    loss: float
    perplexity: float | None = Field(
        description="On the text of evaluated_on; null until evaluated."
    )
    domains: list[DomainView] = Field(description="Quality by domain; empty until evaluated.")
    repair: RepairView | None = Field(description="Null until published, or without repair.")


class CheckpointView(BaseModel):
    """The published checkpoint of a job. Before that: prefixes, no files."""

    id: str
    object: Literal["prune_job.checkpoint"] = "prune_job.checkpoint"
    is_published: bool
    created_at: float | None = Field(description="When it was published.")
    num_blocks: int
    removed_blocks: list[int]
    num_parameters: int | None
    evaluated_on: str | None = Field(description="The text of perplexities, with its windows.")
    prefixes: list[PrefixView] = Field(description="Those that can be served now.")
    files: list[CheckpointFileView]


class CheckpointList(BaseModel):
    object: Literal["list"] = "list"
    data: list[CheckpointView]


class PruneJobList(BaseModel):
    object: Literal["list"] = "list"
    data: list[PruneJobView]
    has_more: bool


class PruneJobEventView(BaseModel):
    id: str
    object: Literal["prune_job.event"] = "prune_job.event"
    created_at: float
    level: str
    message: str
    type: str
    data: dict[str, Any]


class PruneJobEventList(BaseModel):
    object: Literal["list"] = "list"
    data: list[PruneJobEventView]
    has_more: bool


class WebhookDeliveryView(BaseModel):
    """One attempt to deliver a message."""

    id: str = Field(description="Id of the message, sent as webhook-id.")
    object: Literal["webhook_delivery"] = "webhook_delivery"
    type: WebhookEvent
    attempt: int = Field(description="1 for the first.")
    at: float
    duration_s: float
    response_status: int | None = Field(description="Null if there was no response.")
    error: str | None = Field(description="Null if the message was delivered.")
    next_attempt_at: float | None = Field(description="Null if it was delivered or given up.")


class WebhookDeliveryList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WebhookDeliveryView]


class WebhookBody(Body):
    """Where to send signed messages about the status of the job; by default, final ones."""

    url: str = Field(description="http or https, without credentials, up to 2048 characters.")
    events: list[WebhookEvent] = Field(
        default=list(FINAL_EVENTS), min_length=1, max_length=len(WebhookEvent)
    )


_NUMBER: dict[str, Any] = {"type": "number"}


class GateBody(Body):
    """Limits on the quality loss of the whole removal order. At least one is required."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["max_probe_drop"], "properties": {"max_probe_drop": _NUMBER}},
                {
                    "required": ["max_perplexity_ratio"],
                    "properties": {"max_perplexity_ratio": _NUMBER},
                },
                {
                    "required": ["max_perplexity_ratio_of"],
                    "properties": {"max_perplexity_ratio_of": {"minProperties": 1}},
                },
            ]
        }
    )

    max_probe_drop: float | None = Field(
        default=Gate.max_probe_drop,
        description="Maximum loss of the probe score, 0 to 1.",
        json_schema_extra={"minimum": 0, "exclusiveMaximum": 1},
    )
    max_perplexity_ratio: float | None = Field(
        default=Gate.max_perplexity_ratio,
        description="Maximum ratio of pruned to dense perplexity on held-out text; needs evaluate.",
        json_schema_extra={"minimum": 1},
    )
    max_perplexity_ratio_of: dict[
        str, Annotated[float, Field(json_schema_extra={"minimum": 1})]
    ] = Field(
        default_factory=dict,
        description='The same limit by domain of text, as in {"code": 1.5}. The domains of a job '
        "are those of its calibration and the packaged ones.",
    )
    action: GateAction = Field(
        default=Gate.action,
        description="If a limit is exceeded: warn publishes, with a warning in manifest and "
        "events; refuse publishes nothing, and fails the job with quality_gate.",
    )


_ONE_TARGET: dict[str, Any] = {
    "oneOf": [{"required": [name], "properties": {name: {"type": "number"}}} for name in TARGETS]
}


class PruneJobBody(Body):
    """Exactly one of num_remove, sparsity, max_perplexity_ratio and target_speedup is required."""

    # These ranges only document the API: the spec checks them.
    model_config = ConfigDict(json_schema_extra=_ONE_TARGET)

    model: ModelName
    num_remove: int | None = Field(
        default=PruneSpec.num_remove,
        description="Blocks to remove, 1 or more.",
        json_schema_extra={"minimum": 1},
    )
    sparsity: float | None = Field(
        default=PruneSpec.sparsity,
        description="Share of all blocks to remove, between 0 and 1; rounded up to whole blocks.",
        json_schema_extra={"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    )
    max_perplexity_ratio: float | None = Field(
        default=PruneSpec.max_perplexity_ratio,
        description="Stop before the removal with which the perplexity on the calibration windows "
        "exceeds this many times that of the dense model; above 1.",
        json_schema_extra={"exclusiveMinimum": 1},
    )
    target_speedup: float | None = Field(
        default=PruneSpec.target_speedup,
        description="Remove the fewest blocks with which a decode step is this many times as fast, "
        "by times measured on the worker's device; above 1.",
        json_schema_extra={"exclusiveMinimum": 1},
    )
    calibration: OneOrMix = CalibrationBody()
    protect_first: int = Field(default=PruneSpec.protect_first, json_schema_extra={"minimum": 0})
    protect_last: int = Field(default=PruneSpec.protect_last, json_schema_extra={"minimum": 0})
    dtype: Dtype = "auto"
    priority: int = Field(
        default=0,
        ge=-100,
        le=100,
        description="Higher runs first. At equal priority, jobs that had started, then the oldest.",
    )
    evaluate: bool = Field(
        default=PruneSpec.evaluate,
        description="Measure the perplexity on held-out text at every depth.",
    )
    metric: Metric = Field(
        default=PruneSpec.metric,
        description="How blocks are ranked. sleb: by the loss without the block and all removed "
        "before, measured again in each round; kl: the same with the KL divergence from the "
        "predictions of the dense model; one_shot: by the loss without the block alone; cosine: by "
        "how little the block changes its input. one_shot and cosine are measured once, on the "
        "dense model, and cannot be staged or refined.",
    )
    search: Search = Field(
        default=PruneSpec.search,
        description="exact: score every candidate on every window; staged: drop candidates that "
        "are clearly worse after a few windows.",
    )
    resident: Resident = Field(
        default=PruneSpec.resident,
        description="model: keep all weights on the device; stream: load one block at a time. "
        "stream cannot calibrate on self.",
    )
    gate: GateBody | None = None
    quantize: Quantize | None = Field(
        default=PruneSpec.quantize,
        description="Also measure the perplexity of the pruned model with its blocks quantized to "
        "8 or 4 bits; needs evaluate. The published weights are not quantized.",
    )
    zero_shot: bool = Field(
        default=PruneSpec.zero_shot,
        description="Evaluate the dense and the pruned model with lm-eval, on the paper's five "
        "tasks.",
    )
    repair: Repair = Field(
        default=PruneSpec.repair,
        description="How the remaining blocks are corrected, at every depth. ridge: matrices in "
        "front of and behind removed blocks are fitted anew by least squares; scale: one factor of "
        "the hidden states behind each group of removed blocks; auto: the best of both on its "
        "worst domain of text, or none if each of them does harm; none: no correction.",
    )
    refine: int = Field(
        default=PruneSpec.refine,
        description="Exchange a removed block for a kept one while the metric falls, at "
        "most this many times; 0: never. Of two removals, the best pair of all is found. Needs "
        "metric=sleb or kl.",
        json_schema_extra={"minimum": 0},
    )
    score_repaired: bool = Field(
        default=PruneSpec.score_repaired,
        description="Score candidates with the hidden states behind each gap scaled to the norms "
        "of the dense model, so that the order is chosen for the repaired model. Needs a repair.",
    )
    metadata: dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ] = Field(default_factory=dict, max_length=16)
    webhook: WebhookBody | None = None
    dry_run: bool = Field(
        default=False,
        description="Return an estimate of what the job would need, and create no job.",
    )

    def spec_fields(self) -> dict[str, Any]:
        """The fields of ``PruneSpec``, for its ``from_dict``."""
        return self.model_dump(include={field.name for field in fields(PruneSpec)})
