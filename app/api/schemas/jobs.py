"""Request and response bodies of the job routes. The spec checks the ranges of a job."""

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StringConstraints

from app.api.schemas.advice import TaskSharesView
from app.api.schemas.bodies import Body, documented, kind, optional, with_field
from app.api.schemas.calibration import EVALUATION, CalibrationBody, EvaluationBody, OneOrMix
from app.api.schemas.events import SinkView, WebhookBody, WebhookView
from app.api.schemas.gate import GateBody
from app.api.schemas.generate import DomainView, MeasuredSpeedupView, ModelName, RepairView
from app.api.schemas.heal import HealBody, HealEstimateView, HealProgressView
from pruning.spec import InvalidSpec
from pruning.spec.prune import TARGETS, Dtype, Metric, PruneSpec, Quantize, Repair, Resident, Search
from pruning.spec.tasks import MAX_TASKS, MIN_QUESTIONS


class ProgressView(BaseModel):
    evaluations_done: int = Field(description="Finished evaluations of the search.")
    evaluations_total: int = Field(description="Total evaluations; 0 before the search starts.")
    ratio: float = Field(description="Fraction done, from 0 to 1.")


class RepairProgressView(BaseModel):
    steps_done: int = Field(description="Finished steps of the repair.")
    steps_total: int = Field(description="Total steps of the repair.")
    ratio: float = Field(description="Fraction done, from 0 to 1.")


class JobErrorView(BaseModel):
    code: str = Field(description="Kind of the failure, e.g. out_of_memory.")
    message: str = Field(description="What was wrong, and what to do.")
    param: str | None = Field(description="Field of the job that caused it; null if none did.")


class ConditionView(BaseModel):
    """A condition in the sense of Kubernetes, one per state that the job is or was in.

    ``last_transition_at`` is null if it was not recorded.
    """

    type: Literal["Queued", "Running", "Paused", "Succeeded", "Failed", "Cancelled"] = Field(
        description="Name of the state."
    )
    status: Literal["True", "False"] = Field(description="Whether the job is in this state.")
    last_transition_at: float | None = Field(description="Last change, in Unix seconds.")
    reason: str = Field(description="Reason for the change, as one word.")
    message: str = Field(description="Reason for the change, as a sentence.")


class PruneJobView(BaseModel):
    id: str = Field(description="Id of the job.")
    object: Literal["prune_job"] = kind("prune_job")
    model: str = Field(description="The dense model.")
    source: str | None = Field(
        description="Published checkpoint that the job heals; null for a pruning job."
    )
    search_of: str | None = Field(
        description="Earlier job whose search results this job reuses; null if none."
    )
    status: str = Field(
        description="Status: queued, running, paused, cancelling, succeeded, failed or cancelled."
    )
    priority: int = Field(description="Priority; jobs with a higher priority run first.")
    tenant: str | None = Field(
        description="Tenant that owns the job; null if it was created without a key."
    )
    pause_requested_at: float | None = Field(
        description="Time of the request to pause; set until the job has paused."
    )
    phase: str | None = Field(
        description="Current phase: load, calibrate, search, repair, evaluate or publish; null "
        "while the job is not running."
    )
    progress: ProgressView = Field(description="Progress of the search.")
    repair_progress: RepairProgressView | None = Field(
        description="Repair progress of the latest attempt; null before the repair starts."
    )
    heal_progress: HealProgressView | None = Field(
        description="Healing progress of the latest attempt; null before the healing starts."
    )
    removed_blocks: list[int] = Field(description="Blocks removed so far, in order of removal.")
    losses: list[float] = Field(
        description="Loss after each removal on the calibration text, in nats per token."
    )
    dense_loss: float | None = Field(
        description="Loss of the dense model on the same text; null until measured."
    )
    attempt: int = Field(description="Number of times a worker started the job.")
    worker: str | None = Field(description="Worker that runs the job; null if none does.")
    pruned_model: str | None = Field(description="Name of the pruned model; null until published.")
    repair: RepairView | None = Field(
        description="Repair of pruned_model; null until published, or without repair."
    )
    predicted_speedup: float | None = Field(
        description="Predicted decoding speed-up of pruned_model at batch size 1; null until "
        "published."
    )
    measured_speedup: MeasuredSpeedupView | None = Field(
        description="Measured speed-up of pruned_model; null if none was measured."
    )
    domains: list[DomainView] = Field(
        description="Quality of pruned_model by domain; empty until published, or if the job "
        "measured none. Quality of the other prefixes: see checkpoints."
    )
    tasks: TaskSharesView | None = Field(
        description="Tasks that pruned_model and the dense model have answered; null until "
        "published, or if the job asked none."
    )
    created_at: float = Field(description="Creation time, in seconds since the epoch.")
    started_at: float | None = Field(description="Time of the first start; null before.")
    finished_at: float | None = Field(description="End time; null before.")
    estimated_finish: float | None = Field(
        description="Estimated end time of the current search, repair or healing; null if unknown."
    )
    error: JobErrorView | None = Field(description="Error of a failed job; null otherwise.")
    conditions: list[ConditionView] = Field(description="States that the job is or was in.")
    sinks: list[SinkView] = Field(
        description="Other destinations of the result; empty until the job ends."
    )
    metadata: dict[str, str] = Field(description="Metadata, as submitted.")
    webhook: WebhookView | None = Field(description="Webhook, as submitted; null without one.")
    spec: dict[str, Any] = Field(description="All settings of the job.")
    urls: dict[str, str] = Field(description="Links to the routes of this job.")


class EstimateView(BaseModel):
    """Estimated requirements of a job. Bytes count weights and hidden states only."""

    object: Literal["prune_job.estimate"] = kind("prune_job.estimate")
    model: str = Field(description="The dense model.")
    evaluations_total: int = Field(description="Number of evaluations in the search.")
    search_of: str | None = Field(
        description="Earlier job whose search results would be reused; null if none."
    )
    is_upper_bound: bool = Field(
        description="Whether num_evaluations is only an upper bound, because the search decides "
        "when to stop."
    )
    estimated_s: float | None = Field(
        description="Estimated seconds, without healing; null without a similar earlier job."
    )
    estimated_from: list[str] = Field(
        description="Earlier jobs behind the estimate, with the same model, search and windows."
    )
    weight_bytes: int = Field(description="Bytes of the dense model's weights.")
    state_bytes: int | None = Field(
        description="Bytes of hidden states at full speed; null if the number of windows depends "
        "on the text."
    )
    least_state_bytes: int = Field(description="Minimum bytes of hidden states for the search.")
    checkpoint_bytes: int = Field(description="Maximum bytes of the pruned weights on disk.")
    repair_bytes: int = Field(description="Maximum bytes on disk of the repairs of all depths.")
    free_disk_bytes: int = Field(description="Free bytes on the disk for checkpoints.")
    heal: HealEstimateView | None = Field(
        description="Additional requirements of the healing; null without one."
    )


class PruneJobList(BaseModel):
    object: Literal["list"] = kind("list")
    data: list[PruneJobView] = Field(description="The jobs, newest first.")
    has_more: bool = Field(description="Whether there are older jobs.")


_NUMBER: dict[str, Any] = {"type": "number"}


_ONE_TARGET: dict[str, Any] = {"oneOf": [with_field(name, _NUMBER) for name in TARGETS]}
TaskNames = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=64)], ...],
    Field(max_length=MAX_TASKS),
]
Priority = Annotated[
    int,
    Field(
        ge=-100,
        le=100,
        description="Priority; jobs with a higher priority run first. At equal priority, jobs that "
        "were started before run first, then the oldest.",
    ),
]
DryRun = Annotated[
    StrictBool,
    Field(description="Return the estimated requirements of the job, and create no job."),
]
METADATA = "Custom labels, up to 16."
Metadata = dict[
    Annotated[str, StringConstraints(max_length=64)],
    Annotated[str, StringConstraints(max_length=512)],
]


class PruneJobBody(Body):
    """Exactly one of num_remove, sparsity, max_perplexity_ratio, target_speedup and target_bytes is
    required."""

    # These ranges only document the API: the spec checks them.
    model_config = ConfigDict(json_schema_extra=_ONE_TARGET)

    model: ModelName = Field(description="Name of a dense model.")
    num_remove: int | None = documented(
        PruneSpec.num_remove, "Number of blocks to remove, 1 or more.", {"minimum": 1}
    )
    sparsity: float | None = documented(
        PruneSpec.sparsity,
        "Fraction of the blocks to remove, between 0 and 1; rounded up to whole blocks.",
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1},
    )
    max_perplexity_ratio: float | None = documented(
        PruneSpec.max_perplexity_ratio,
        "Stop before the perplexity on the calibration windows exceeds this multiple "
        "of the dense model's; above 1.",
        {"exclusiveMinimum": 1},
    )
    target_speedup: float | None = documented(
        PruneSpec.target_speedup,
        "Remove the fewest blocks that make a decode step this many times as fast, "
        "based on times measured on the worker's device; above 1.",
        {"exclusiveMinimum": 1},
    )
    target_bytes: int | None = documented(
        PruneSpec.target_bytes,
        "Remove the fewest blocks that bring the weights down to this many bytes, in "
        "the published dtype, whichever blocks are removed.",
        {"exclusiveMinimum": 0},
    )
    calibration: OneOrMix = CalibrationBody()
    protect_first: int = documented(
        PruneSpec.protect_first,
        "Number of blocks at the start of the model that are never removed.",
        {"minimum": 0},
    )
    protect_last: int = documented(
        PruneSpec.protect_last,
        "Number of blocks at the end of the model that are never removed.",
        {"minimum": 0},
    )
    dtype: Dtype = documented(
        "auto", "dtype of the weights during the run; auto uses the model's dtype."
    )
    save_dtype: Dtype | None = documented(
        "auto", "dtype of the published weights; auto uses the model's dtype, null uses dtype."
    )
    priority: Priority = 0
    evaluate: StrictBool = documented(
        PruneSpec.evaluate, "Measure the perplexity on held-out text at every depth."
    )
    metric: Metric = documented(
        PruneSpec.metric,
        "Metric that ranks the blocks. sleb: the loss without the block and all blocks "
        "removed before, measured again in each round; kl: the same with the KL "
        "divergence from the dense model's predictions; one_shot: the loss without "
        "only this block; cosine: how little the block changes its input. one_shot and "
        "cosine are measured once, on the dense model, and do not support staged "
        "search.",
    )
    search: Search = documented(
        PruneSpec.search,
        "exact: score every candidate on every window; staged: drop clearly worse "
        "candidates after a few windows.",
    )
    resident: Resident = documented(
        PruneSpec.resident,
        "model: keep all weights on the device; stream: load one block at a time. "
        "stream does not support calibration on self.",
    )
    gate: GateBody | None = optional(
        "Limits on the quality loss; without a gate, no limit is checked."
    )
    quantize: Quantize | None = documented(
        PruneSpec.quantize,
        "Also measure the perplexity of the pruned model with its blocks quantized to "
        "int8 or int4, or to w8a8: int8 weights and activations; requires evaluate. The "
        "published weights are not quantized.",
    )
    tasks: TaskNames = documented(
        PruneSpec.tasks,
        "Tasks that the dense and the pruned model answer: those with a file in the folder "
        "SLEB_TASK_DATA_DIR of the service, generated ones (gen_arithmetic, gen_json, "
        "gen_brackets, gen_key, gen_call), and the paper's five, which lm-eval downloads.",
    )
    task_questions: int | None = documented(
        PruneSpec.task_questions,
        "Questions of each task, the first ones; null for all. A gate with min_task_share asks up "
        "to eight times as many while it is undecided.",
        {"minimum": MIN_QUESTIONS},
    )
    repair: Repair = documented(
        PruneSpec.repair,
        "Repair of the remaining blocks at every depth. ridge: refit the matrices "
        "before and after removed blocks by least squares; auto: use ridge, unless it "
        "makes a text domain worse or does not fit into memory; none: no repair. scale "
        "is no longer supported: use ridge or auto.",
    )
    evaluation: EvaluationBody | None = documented(EvaluationBody(), EVALUATION)
    heal: HealBody | None = optional(
        "Train the pruned model after the search, and also publish the result as "
        "NAME@JOB+healed, which pruned_model then refers to. Requires resident=model. "
        "The gate applies only to the healed models. If the job fails or is cancelled "
        "after the pruned model was published, the pruned model is kept."
    )
    metadata: Metadata = Field(default_factory=dict, max_length=16, description=METADATA)
    webhook: WebhookBody | None = optional("Webhook for messages about the job.")
    reuse_search: StrictBool = documented(
        True, "Reuse the search results of an earlier job with the same search settings."
    )
    dry_run: DryRun = False

    def spec_fields(self) -> dict[str, Any]:
        """The fields of ``PruneSpec``, for its ``from_dict``."""
        return self.model_dump(include={field.name for field in fields(PruneSpec)})


class HealJobBody(Body):
    """Heal a published checkpoint."""

    model: ModelName = Field(description="Name of the checkpoint, as NAME@JOB.")
    heal: HealBody = documented(HealBody(), "Training settings.")
    priority: Priority = 0
    metadata: Metadata = Field(default_factory=dict, max_length=16, description=METADATA)
    webhook: WebhookBody | None = optional("Webhook for messages about the job.")
    dry_run: DryRun = False


_CAN_BE_NULL = ("gate", "quantize", "heal", "evaluation", "save_dtype", "task_questions")
_OF_HEALING = frozenset({"heal"})  # all that a job has that prunes nothing


class RetryJobBody(Body):
    """Settings to change. Omitted fields stay as they were.

    Fields that the search depends on cannot be changed.
    """

    evaluate: StrictBool | None = optional(
        "Measure the perplexity on held-out text at every depth."
    )
    evaluation: EvaluationBody | None = optional(
        "How much held-out text to measure, as for a new job."
    )
    repair: Repair | None = optional("Repair of the remaining blocks, as for a new job.")
    gate: GateBody | None = optional("Limits on the quality loss; null removes them.")
    quantize: Quantize | None = optional(
        "Also measure the perplexity with quantized blocks; null disables it."
    )
    tasks: TaskNames | None = optional("Tasks that both models answer, as for a new job.")
    task_questions: int | None = optional("Questions of each task; null for all.")
    resident: Resident | None = optional(
        "model: keep all weights on the device; stream: load one block at a time."
    )
    save_dtype: Dtype | None = optional("dtype of the published weights, as for a new job.")
    heal: HealBody | None = optional("Train the pruned model after the search; null disables it.")

    def changed(self, spec: PruneSpec, *, heals_only: bool) -> PruneSpec:
        """The spec with these changes. Raises ``InvalidSpec``."""
        asked: dict[str, Any] = self.model_dump(include=self.model_fields_set)
        changes = {
            name: value
            for name, value in asked.items()
            if value is not None or name in _CAN_BE_NULL
        }
        if heals_only and (others := changes.keys() - _OF_HEALING):
            raise InvalidSpec(
                min(others),
                f"{min(others)}: cannot be changed, because this job only heals: change heal "
                "instead",
            )
        if heals_only and changes.get("heal", spec.heal) is None:
            raise InvalidSpec(
                "heal",
                "heal=null: not allowed, because this job only heals: change the settings of "
                "heal instead",
            )
        return PruneSpec.from_dict({**spec.to_dict(), **changes})
