"""The wire format of the job routes: what goes out."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from pruning.jobs.job import WebhookEvent


class ProgressView(BaseModel):
    evaluations_done: int
    evaluations_total: int
    ratio: float


class JobErrorView(BaseModel):
    code: str
    message: str
    param: str | None


class ConditionView(BaseModel):
    """As Kubernetes has them: one per state that the job is in, or has been in.

    ``last_transition_at`` is null where the record does not tell it.
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
        description="While it runs although it is to pause: its worker has not stopped yet."
    )
    phase: str | None
    progress: ProgressView
    removed_blocks: list[int]
    losses: list[float]
    dense_loss: float | None
    attempt: int
    worker: str | None
    pruned_model: str | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    estimated_finish: float | None
    error: JobErrorView | None
    conditions: list[ConditionView]
    metadata: dict[str, str]
    webhook: WebhookView | None
    spec: dict[str, Any]
    urls: dict[str, str]


class EstimateView(BaseModel):
    """What a job would need. Bytes are those of weights and hidden states alone."""

    object: Literal["prune_job.estimate"] = "prune_job.estimate"
    model: str
    evaluations_total: int
    is_upper_bound: bool = Field(description="Whether only the search shows how far it goes.")
    estimated_s: float | None = Field(description="Null without an earlier job to judge by.")
    estimated_from: list[str] = Field(
        description="The jobs that it is judged by: same model, same kind of search and windows."
    )
    weight_bytes: int
    state_bytes: int | None = Field(
        description="Hidden states at full speed; null where the text decides how many windows."
    )
    least_state_bytes: int = Field(description="With less the search cannot run.")
    checkpoint_bytes: int = Field(description="At most, on disk.")
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
    removed_block: int = Field(description="The last that went.")
    loss: float
    perplexity: float | None = Field(description="On held-out text; null: not evaluated yet.")


class CheckpointView(BaseModel):
    """What a job has published, or has found so far: then it has prefixes, but no files yet."""

    id: str
    object: Literal["prune_job.checkpoint"] = "prune_job.checkpoint"
    is_published: bool
    created_at: float | None = Field(description="When it was published.")
    num_blocks: int
    removed_blocks: list[int]
    num_parameters: int | None
    prefixes: list[PrefixView] = Field(description="Those that can be generated with now.")
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

    id: str = Field(description="Of the message, as its webhook-id says.")
    object: Literal["webhook_delivery"] = "webhook_delivery"
    type: WebhookEvent
    attempt: int = Field(description="1 for the first.")
    at: float
    duration_s: float
    response_status: int | None = Field(description="Null if there was no response.")
    error: str | None = Field(description="Null if the message was taken.")
    next_attempt_at: float | None = Field(description="Null if it was taken, or given up.")


class WebhookDeliveryList(BaseModel):
    object: Literal["list"] = "list"
    data: list[WebhookDeliveryView]
