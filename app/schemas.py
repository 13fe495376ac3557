"""The wire format of this project's own routes: what comes in, checked, and what goes out."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from pruning.spec import Dataset, Resident, Sampling, Search

MAX_PROMPTS = 256
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Prompt = Annotated[str, StringConstraints(min_length=1)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class CalibrationBody(_Body):
    """Calibration text; the defaults need no network."""

    dataset: Dataset = Dataset.SELF
    sampling: Sampling = Sampling.WINDOWS
    num_samples: int = 16
    seqlen: int = 128
    seed: int = 0
    path: str | None = Field(default=None, max_length=4096, description="Within the texts folder.")


class PruneJobBody(_Body):
    """Exactly one of num_remove, sparsity, max_perplexity_ratio and target_speedup says how far
    to go.
    """

    model: ModelName
    num_remove: int | None = Field(default=None, description="Blocks to remove, 1 or more.")
    sparsity: float | None = Field(
        default=None, description="Share of all blocks to remove, between 0 and 1, rounded up."
    )
    max_perplexity_ratio: float | None = Field(
        default=None,
        description="Stop in front of the first removal that makes the perplexity on the "
        "calibration windows more than this many times the dense model's; above 1.",
    )
    target_speedup: float | None = Field(
        default=None,
        description="Remove the fewest blocks that make a decode step this many times as fast, by "
        "the times of this model's parts on the worker's device; above 1.",
    )
    calibration: CalibrationBody = CalibrationBody()
    protect_first: int = 1
    protect_last: int = 1
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    evaluate: bool = Field(
        default=True, description="Measure the perplexity of every depth on held-out text."
    )
    search: Search = Field(
        default=Search.EXACT,
        description="exact: every candidate on every window; staged: candidates that are clearly "
        "worse leave the round after a few windows.",
    )
    resident: Resident = Field(
        default=Resident.MODEL,
        description="model: all weights on the device; stream: blocks visit it one at a time. "
        "stream takes its calibration text from file, wikitext2 or c4.",
    )
    metadata: dict[
        Annotated[str, StringConstraints(max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ] = Field(default_factory=dict, max_length=16)


class ProgressView(BaseModel):
    evaluations_done: int
    evaluations_total: int
    ratio: float


class JobErrorView(BaseModel):
    code: str
    message: str
    param: str | None


class PruneJobView(BaseModel):
    id: str
    object: Literal["prune_job"] = "prune_job"
    model: str
    status: str
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
    metadata: dict[str, str]
    spec: dict[str, Any]
    urls: dict[str, str]


class PruneJobList(BaseModel):
    object: Literal["list"] = "list"
    data: list[PruneJobView]
    has_more: bool


class GenerateBody(_Body):
    """One or many prompts, generated together as one batch. Temperature 0 is greedy."""

    model: ModelName
    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)]
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] = Field(
        default_factory=list
    )
    ignore_eos: bool = False
    return_token_ids: bool = False


class TimingsView(BaseModel):
    """Seconds; ``tpot_s`` needs two tokens."""

    queue_s: float
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float


class OutputView(BaseModel):
    index: int
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    timings: TimingsView
    token_ids: list[int] | None = None


class GenerateView(BaseModel):
    id: str
    object: Literal["generation"] = "generation"
    model: str
    variant: Literal["dense", "pruned"]
    created_at: float
    outputs: list[OutputView]


class ModelView(BaseModel):
    id: str
    object: Literal["model"] = "model"
    variant: Literal["dense", "pruned"]
    parent: str | None
    num_blocks: int
    removed_blocks: list[int]
    losses: list[float]
    perplexity: float | None
    dense_perplexity: float | None
    evaluated_on: str | None
    num_parameters: int | None
    checkpoint: str | None
    dtype: str | None
    max_positions: int | None
    is_loaded: bool
    error: str | None


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelView]


class HealthView(BaseModel):
    status: str
    detail: str | None = None


class VersionView(BaseModel):
    sleb_serve: str
    torch: str
    transformers: str
