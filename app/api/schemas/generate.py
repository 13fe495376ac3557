"""Request and response bodies of ``/generate``, ``/models`` and the health routes."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.api.schemas.sampling import SamplingFields
from app.engine.sequence import MAX_TOP_LOGPROBS
from pruning.repair.names import Method

MAX_PROMPTS = 256
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Prompt = Annotated[str, StringConstraints(min_length=1)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopStrings = StopString | Annotated[list[StopString], Field(max_length=16)]


class Body(BaseModel):
    """A request body. Unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class PromptsBody(Body, SamplingFields):
    """One or many prompts, and how to continue them. Temperature 0 is greedy."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)]
    stop: StopStrings = Field(default_factory=list)

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop


class GenerateBody(PromptsBody):
    """The prompts are generated together as one batch."""

    model: ModelName
    return_token_ids: bool = False
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="Number of alternatives to report with each token's log-probability.",
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="Outputs that take longer end with finish_reason timeout.",
    )
    stream: bool = Field(default=False, description="Respond with server-sent events.")


class TimingsView(BaseModel):
    """Durations in seconds. ``tpot_s`` is the mean time per token after the first."""

    queue_s: float
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float


class LogprobView(BaseModel):
    token_id: int | None = Field(description="Null for a model of another server.")
    token: str
    logprob: float


class TokenView(LogprobView):
    """A generated token. Log-probabilities are those before any sampling parameter applies."""

    top: list[LogprobView]


class OutputView(BaseModel):
    index: int
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    timings: TimingsView
    token_ids: list[int] | None = None
    logprobs: list[TokenView] | None = None


class OutputDeltaView(BaseModel):
    """The delta of one output: final text, and its tokens."""

    index: int
    text: str
    token_ids: list[int] | None = None
    logprobs: list[TokenView] | None = None


class GenerateView(BaseModel):
    id: str
    object: Literal["generation"] = "generation"
    model: str
    variant: Literal["dense", "pruned"]
    created_at: float
    outputs: list[OutputView]


class RepairView(BaseModel):
    """How the blocks of a pruned variant are corrected for those that are missing."""

    method: Method
    bytes: int = Field(description="Of the weights that the variant does not share.")
    raw: str = Field(description="Name of the same blocks without repair.")


class DomainView(BaseModel):
    """Quality on the held-out text of one domain."""

    domain: str
    text: str = Field(description="The text, with the number and the length of its windows.")
    digest: str = Field(
        description="sha256 of the token ids. Perplexities of equal digests can be compared."
    )
    perplexity: float
    raw_perplexity: float = Field(description="Without repair; the same for an unrepaired model.")
    dense_perplexity: float
    dense_perplexity_low: float | None = Field(
        description="Lower end of its 95 % interval on text like this, by Student's t over "
        "windows. Null, as all ends of intervals, if there is a single window."
    )
    dense_perplexity_high: float | None = Field(description="Upper end of that interval.")
    ratio: float = Field(description="perplexity / dense_perplexity.")
    ratio_low: float | None = Field(
        description="Lower end of the 95 % interval of ratio, from differences to the dense model "
        "window by window."
    )
    ratio_high: float | None = Field(description="Upper end of that interval.")
    raw_ratio: float = Field(description="raw_perplexity / dense_perplexity.")
    raw_ratio_low: float | None = Field(description="Lower end of the same interval of raw_ratio.")
    raw_ratio_high: float | None = Field(description="Upper end of that interval.")
    recovered: float | None = Field(
        description="Share of the lost nats per token that the repair gives back. Null without a "
        "repair, or if nothing was lost."
    )


class AliasBody(Body):
    target: ModelName = Field(description="A model, a published variant, or another alias.")


class ModelView(BaseModel):
    id: str
    aliases: list[str] = Field(description="Other names of the model, set with PUT.")
    object: Literal["model"] = "model"
    variant: Literal["dense", "pruned"]
    backend: Literal["engine", "openai"] = Field(
        description="engine: this service; openai: another server with OpenAI's API."
    )
    parent: str | None
    num_blocks: int
    removed_blocks: list[int]
    losses: list[float]
    predicted_speedup: float | None = Field(
        description="Time of a decode step of one sequence, dense over pruned, by the times of the "
        "blocks on the machine of the job. Null for a dense model and while the job runs."
    )
    perplexity: float | None
    dense_perplexity: float | None
    probe_score: float | None = Field(
        description="0 to 1. Known for the dense model and for a job's full depth, if its gate "
        "uses the probe."
    )
    dense_probe_score: float | None
    zero_shot: float | None = Field(
        description="Mean accuracy, 0 to 1, on the paper's five tasks. Known for the same two, if "
        "the job measured it."
    )
    dense_zero_shot: float | None
    quantized_weights: Literal["int8", "int4"] | None = Field(
        description="Precision of quantized_perplexity. The weights of the model are not quantized."
    )
    quantized_perplexity: float | None
    warnings: list[str] = Field(description="Warnings of the job's quality gate, at full depth.")
    evaluated_on: str | None = Field(description="The text of perplexity, with its windows.")
    domains: list[DomainView] = Field(
        description="Quality by domain of text; empty if the job measured none."
    )
    num_parameters: int | None
    checkpoint: str | None
    is_published: bool = Field(description="False until the job publishes a checkpoint.")
    repair: RepairView | None = Field(description="Null for a variant that is not repaired.")
    dtype: str | None
    max_positions: int | None
    is_loaded: bool = Field(description="Whether requests run without loading weights first.")
    weight_bytes: int = Field(
        description="Weights in memory. A view shares those of its parent, and has 0 or the bytes "
        "of its repair."
    )
    kv_cache_bytes: int = Field(
        description="KV cache of running requests, shared by names of the same blocks."
    )
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
