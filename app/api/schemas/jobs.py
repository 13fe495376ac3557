"""Request and response bodies of the job routes. The spec checks the ranges of a job."""

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from app.api.schemas.bodies import Body, documented, kind, optional, with_field
from app.api.schemas.calibration import EVALUATION, CalibrationBody, EvaluationBody, OneOrMix
from app.api.schemas.events import SinkView, WebhookBody, WebhookView
from app.api.schemas.generate import DomainView, MeasuredSpeedupView, ModelName, RepairView
from app.api.schemas.heal import HealBody, HealEstimateView, HealProgressView
from pruning.spec import InvalidSpec
from pruning.spec.evaluation import Gate, GateAction
from pruning.spec.prune import TARGETS, Dtype, Metric, PruneSpec, Quantize, Repair, Resident, Search


class ProgressView(BaseModel):
    evaluations_done: int = Field(description="Finished evaluations of the search.")
    evaluations_total: int = Field(
        description="All evaluations of the search; 0 before it has begun."
    )
    ratio: float = Field(description="Share that is done, 0 to 1.")


class RepairProgressView(BaseModel):
    steps_done: int = Field(description="Finished steps of the repair.")
    steps_total: int = Field(description="All steps of the repair.")
    ratio: float = Field(description="Share that is done, 0 to 1.")


class JobErrorView(BaseModel):
    code: str = Field(description="Kind of the failure, as out_of_memory.")
    message: str = Field(description="What was wrong, and what to do.")
    param: str | None = Field(description="The field of the job that caused it; null if none did.")


class ConditionView(BaseModel):
    """A condition in the sense of Kubernetes, one per state that the job is or was in.

    ``last_transition_at`` is null if the record does not contain it.
    """

    type: Literal["Queued", "Running", "Paused", "Succeeded", "Failed", "Cancelled"] = Field(
        description="The state."
    )
    status: Literal["True", "False"] = Field(description="Whether the job is in it.")
    last_transition_at: float | None = Field(
        description="When the status changed, in seconds since the epoch."
    )
    reason: str = Field(description="Why it changed, in one word.")
    message: str = Field(description="The same in a sentence.")


class PruneJobView(BaseModel):
    id: str = Field(description="Of the job.")
    object: Literal["prune_job"] = kind("prune_job")
    model: str = Field(description="The dense model.")
    source: str | None = Field(description="The published checkpoint that the job only heals.")
    search_of: str | None = Field(description="The job whose search it went on with.")
    status: str = Field(
        description="queued, running, paused, cancelling, succeeded, failed or cancelled."
    )
    priority: int = Field(description="Higher runs first.")
    tenant: str | None = Field(
        description="Whom the job belongs to; null if it was made without a key."
    )
    pause_requested_at: float | None = Field(
        description="Set while a running job is about to pause."
    )
    phase: str | None = Field(
        description="load, calibrate, search, repair, evaluate or publish; null before and after."
    )
    progress: ProgressView = Field(description="Of the search.")
    repair_progress: RepairProgressView | None = Field(
        description="Of the latest attempt; null before the repair begins."
    )
    heal_progress: HealProgressView | None = Field(
        description="Of the latest attempt; null before the healing begins."
    )
    removed_blocks: list[int] = Field(description="So far, in the order of their removal.")
    losses: list[float] = Field(
        description="Behind each removal, on the calibration text, in nats per token."
    )
    dense_loss: float | None = Field(
        description="Of the dense model on the same text; null before it is measured."
    )
    attempt: int = Field(description="Number of times that a worker has started it.")
    worker: str | None = Field(description="The worker that runs it; null while none does.")
    pruned_model: str | None = Field(description="Name of its model; null until published.")
    repair: RepairView | None = Field(
        description="Of pruned_model; null until published, or without repair."
    )
    predicted_speedup: float | None = Field(
        description="Of pruned_model, for a decode step of one sequence; null until published."
    )
    measured_speedup: MeasuredSpeedupView | None = Field(
        description="Of pruned_model; null if none was measured."
    )
    domains: list[DomainView] = Field(
        description="Quality of pruned_model by domain; empty until published, or if the job "
        "measured none. Each prefix has its own, see checkpoints."
    )
    created_at: float = Field(description="Seconds since the epoch.")
    started_at: float | None = Field(description="When a worker first started it; null before.")
    finished_at: float | None = Field(description="When it ended; null before.")
    estimated_finish: float | None = Field(
        description="Of the search, the repair or the healing, while it is running."
    )
    error: JobErrorView | None = Field(description="Why it failed; null unless it did.")
    conditions: list[ConditionView] = Field(description="The states that it has been in.")
    sinks: list[SinkView] = Field(description="Where its result is sent; empty before the end.")
    metadata: dict[str, str] = Field(description="As submitted.")
    webhook: WebhookView | None = Field(description="As submitted; null without one.")
    spec: dict[str, Any] = Field(description="All settings of the job.")
    urls: dict[str, str] = Field(description="Of the routes about this job.")


class EstimateView(BaseModel):
    """What a job would need. Bytes count weights and hidden states only."""

    object: Literal["prune_job.estimate"] = kind("prune_job.estimate")
    model: str = Field(description="The dense model.")
    evaluations_total: int = Field(description="Evaluations of the search.")
    search_of: str | None = Field(description="The job whose search it would go on with.")
    is_upper_bound: bool = Field(
        description="True if the search decides how many evaluations it needs."
    )
    estimated_s: float | None = Field(
        description="Without the healing; null without a similar earlier job."
    )
    estimated_from: list[str] = Field(
        description="The earlier jobs used: same model, search and windows."
    )
    weight_bytes: int = Field(description="Weights of the dense model.")
    state_bytes: int | None = Field(
        description="Hidden states at full speed; null where the text decides how many windows."
    )
    least_state_bytes: int = Field(description="Minimum for the search to run.")
    checkpoint_bytes: int = Field(description="Of its weights at most, on disk.")
    repair_bytes: int = Field(description="Of the repairs of all depths at most, on disk.")
    free_disk_bytes: int = Field(description="Free where checkpoints are stored.")
    heal: HealEstimateView | None = Field(
        description="What its healing would need beside that; null without one."
    )


class PruneJobList(BaseModel):
    object: Literal["list"] = kind("list")
    data: list[PruneJobView] = Field(description="The jobs, newest first.")
    has_more: bool = Field(description="Whether older jobs follow.")


_NUMBER: dict[str, Any] = {"type": "number"}


class GateBody(Body):
    """Limits on the quality loss of the whole removal order. At least one is required."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                with_field("max_probe_drop", _NUMBER),
                with_field("max_perplexity_ratio", _NUMBER),
                with_field("max_perplexity_ratio_of", {"minProperties": 1}),
            ]
        }
    )

    max_probe_drop: float | None = documented(
        Gate.max_probe_drop,
        "Maximum loss of the probe score, 0 to 1.",
        {"minimum": 0, "exclusiveMaximum": 1},
    )
    max_perplexity_ratio: float | None = documented(
        Gate.max_perplexity_ratio,
        "Maximum ratio of pruned to dense perplexity on held-out text; needs evaluate.",
        {"minimum": 1},
    )
    max_perplexity_ratio_of: dict[
        str, Annotated[float, Field(json_schema_extra={"minimum": 1})]
    ] = Field(
        default_factory=dict,
        description='The same limit by domain of text, as in {"code": 1.5}. The domains of a job '
        "are those of its calibration and the packaged ones.",
    )
    action: GateAction = documented(
        Gate.action,
        "If a limit is exceeded: warn publishes, with a warning in manifest and "
        "events; refuse publishes nothing, and fails the job with quality_gate; deepest publishes "
        "the most removals that are shown to keep every limit, and fails if none are.",
    )


_ONE_TARGET: dict[str, Any] = {"oneOf": [with_field(name, _NUMBER) for name in TARGETS]}
Priority = Annotated[
    int,
    Field(
        ge=-100,
        le=100,
        description="Higher runs first. At equal priority, jobs that had started, then the oldest.",
    ),
]
DryRun = Annotated[
    StrictBool,
    Field(description="Return an estimate of what the job would need, and create no job."),
]
METADATA = "Your own labels, up to 16."
Metadata = dict[
    Annotated[str, StringConstraints(max_length=64)],
    Annotated[str, StringConstraints(max_length=512)],
]


class PruneJobBody(Body):
    """Exactly one of num_remove, sparsity, max_perplexity_ratio, target_speedup and target_bytes is
    required."""

    # These ranges only document the API: the spec checks them.
    model_config = ConfigDict(json_schema_extra=_ONE_TARGET)

    model: ModelName = Field(description="A dense model.")
    num_remove: int | None = documented(
        PruneSpec.num_remove, "Blocks to remove, 1 or more.", {"minimum": 1}
    )
    sparsity: float | None = documented(
        PruneSpec.sparsity,
        "Share of all blocks to remove, between 0 and 1; rounded up to whole blocks.",
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    )
    max_perplexity_ratio: float | None = documented(
        PruneSpec.max_perplexity_ratio,
        "Stop before the removal with which the perplexity on the calibration windows "
        "exceeds this many times that of the dense model; above 1.",
        {"exclusiveMinimum": 1},
    )
    target_speedup: float | None = documented(
        PruneSpec.target_speedup,
        "Remove the fewest blocks with which a decode step is this many times as fast, "
        "by times measured on the worker's device; above 1.",
        {"exclusiveMinimum": 1},
    )
    target_bytes: int | None = documented(
        PruneSpec.target_bytes,
        "Remove the fewest blocks with which the weights, in the type that is "
        "published, take at most this many bytes, whichever blocks go.",
        {"exclusiveMinimum": 0},
    )
    calibration: OneOrMix = CalibrationBody()
    protect_first: int = documented(
        PruneSpec.protect_first, "Remaining blocks at the start that are kept.", {"minimum": 0}
    )
    protect_last: int = documented(
        PruneSpec.protect_last, "Remaining blocks at the end that are kept.", {"minimum": 0}
    )
    dtype: Dtype = documented("auto", "Of the weights during the run; auto is the model's own.")
    save_dtype: Dtype | None = documented(
        "auto", "Of the published weights; auto is the model's own, null that of the run."
    )
    priority: Priority = 0
    evaluate: StrictBool = documented(
        PruneSpec.evaluate, "Measure the perplexity on held-out text at every depth."
    )
    metric: Metric = documented(
        PruneSpec.metric,
        "How blocks are ranked. sleb: by the loss without the block and all removed "
        "before, measured again in each round; kl: the same with the KL divergence from the "
        "predictions of the dense model; one_shot: by the loss without the block alone; cosine: by "
        "how little the block changes its input. one_shot and cosine are measured once, on the "
        "dense model, and cannot be staged.",
    )
    search: Search = documented(
        PruneSpec.search,
        "exact: score every candidate on every window; staged: drop candidates that "
        "are clearly worse after a few windows.",
    )
    resident: Resident = documented(
        PruneSpec.resident,
        "model: keep all weights on the device; stream: load one block at a time. "
        "stream cannot calibrate on self.",
    )
    gate: GateBody | None = optional("Limits on the quality loss; without one, nothing is checked.")
    quantize: Quantize | None = documented(
        PruneSpec.quantize,
        "Also measure the perplexity of the pruned model with its blocks quantized to "
        "8 or 4 bits; needs evaluate. The published weights are not quantized.",
    )
    zero_shot: StrictBool = documented(
        PruneSpec.zero_shot,
        "Evaluate the dense and the pruned model with lm-eval, on the paper's five tasks.",
    )
    repair: Repair = documented(
        PruneSpec.repair,
        "How the remaining blocks are corrected, at every depth. ridge: matrices in "
        "front of and behind removed blocks are fitted anew by least squares; auto: that, or "
        "none where it does harm to a domain of text or needs more memory than there is; none: no "
        "correction. scale was removed: take ridge or auto.",
    )
    evaluation: EvaluationBody | None = documented(EvaluationBody(), EVALUATION)
    heal: HealBody | None = optional(
        "Train the pruned model in the end and publish the result beside it, as "
        "NAME@JOB+healed, which pruned_model names then. Needs resident=model. The gate acts on "
        "the healed models alone. A job that is cancelled or fails after it has published the "
        "pruned model keeps that."
    )
    metadata: Metadata = Field(default_factory=dict, max_length=16, description=METADATA)
    webhook: WebhookBody | None = optional("Where to send messages about the job.")
    reuse_search: StrictBool = documented(
        True, "Go on with what an earlier job has found that searches in the same way."
    )
    dry_run: DryRun = False

    def spec_fields(self) -> dict[str, Any]:
        """The fields of ``PruneSpec``, for its ``from_dict``."""
        return self.model_dump(include={field.name for field in fields(PruneSpec)})


class HealJobBody(Body):
    """Heal a published checkpoint."""

    model: ModelName = Field(description="The name of the checkpoint, as NAME@JOB.")
    heal: HealBody = documented(HealBody(), "How it is trained.")
    priority: Priority = 0
    metadata: Metadata = Field(default_factory=dict, max_length=16, description=METADATA)
    webhook: WebhookBody | None = optional("Where to send messages about the job.")
    dry_run: DryRun = False


_CAN_BE_NULL = ("gate", "quantize", "heal", "evaluation", "save_dtype")
_OF_HEALING = frozenset({"heal"})  # all that a job has that prunes nothing


class RetryJobBody(Body):
    """What to change. A field that is left out stays as it was.

    The search has what it depends on in other fields, which cannot change.
    """

    evaluate: StrictBool | None = optional(
        "Measure the perplexity on held-out text at every depth."
    )
    evaluation: EvaluationBody | None = optional(
        "How much held-out text is measured, as for a new job."
    )
    repair: Repair | None = optional("How the remaining blocks are corrected, as for a new job.")
    gate: GateBody | None = optional("Limits on the quality loss; null for none.")
    quantize: Quantize | None = optional(
        "Measure the perplexity with quantized blocks too; null to not."
    )
    zero_shot: StrictBool | None = optional("Evaluate both models on the paper's five tasks.")
    resident: Resident | None = optional("model, or stream: load one block at a time.")
    save_dtype: Dtype | None = optional("Of the published weights, as for a new job.")
    heal: HealBody | None = optional("Train the pruned model in the end; null to not.")

    def changed(self, spec: PruneSpec, *, heals_only: bool) -> PruneSpec:
        """The spec with these changes. Raises ``InvalidSpec``."""
        asked: dict[str, Any] = self.model_dump(include=self.model_fields_set)
        changes = {
            name: value
            for name, value in asked.items()
            if value is not None or name in _CAN_BE_NULL
        }
        if heals_only and (others := changes.keys() - _OF_HEALING):
            raise InvalidSpec(min(others), f"{min(others)}: this job only heals, so change heal")
        if heals_only and changes.get("heal", spec.heal) is None:
            raise InvalidSpec("heal", "heal=null: this job only heals, so nothing would be left")
        return PruneSpec.from_dict({**spec.to_dict(), **changes})
