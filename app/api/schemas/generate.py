"""The wire format of this project's own routes: what comes in, checked, and what goes out."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.engine.sequence import SamplingParams

MAX_PROMPTS = 256
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Prompt = Annotated[str, StringConstraints(min_length=1)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopStrings = StopString | Annotated[list[StopString], Field(max_length=16)]
StopTokenIds = Annotated[list[int], Field(max_length=256)]


class Body(BaseModel):
    """What a client sends: an unknown field is a mistake."""

    model_config = ConfigDict(extra="forbid")


class PromptsBody(Body):
    """One or many prompts, and how to continue them. Temperature 0 is greedy."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)]
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = Field(
        default=0.0, description="Only tokens of at least this share of the best one's probability."
    )
    repetition_penalty: float = Field(
        default=1.0, description="Above 1, what was in prompt or answer becomes less likely."
    )
    seed: int | None = None
    stop: StopStrings = Field(default_factory=list)
    stop_token_ids: StopTokenIds = Field(default_factory=list)
    ignore_eos: bool = False

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop

    def params(self, num_logprobs: int | None = None) -> SamplingParams:
        """Raises ``InvalidSampling``."""
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop_token_ids=frozenset(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            num_logprobs=num_logprobs,
        )


class GenerateBody(PromptsBody):
    """Generated together as one batch."""

    model: ModelName
    return_token_ids: bool = False
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=20,
        description="Alternatives to report with each token's log-probability.",
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="What is not done by then ends with finish_reason timeout.",
    )
    stream: bool = Field(default=False, description="Answer with server-sent events.")


class TimingsView(BaseModel):
    """Seconds; ``tpot_s`` needs two tokens."""

    queue_s: float
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float


class LogprobView(BaseModel):
    token_id: int | None = Field(description="Null where another server generates.")
    token: str
    logprob: float


class TokenView(LogprobView):
    """A generated token. Log-probabilities are the model's own, before any sampling setting."""

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


class PieceView(BaseModel):
    """What is new of one output, as an event: text that is final, and the tokens behind it."""

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


class ModelView(BaseModel):
    id: str
    object: Literal["model"] = "model"
    variant: Literal["dense", "pruned"]
    backend: Literal["engine", "openai"] = Field(
        description="What generates for it: this service's engine, or another server's API."
    )
    parent: str | None
    num_blocks: int
    removed_blocks: list[int]
    losses: list[float]
    perplexity: float | None
    dense_perplexity: float | None
    probe_score: float | None = Field(
        description="0 to 1; of the dense model and of a job's full depth, if its gate asked."
    )
    dense_probe_score: float | None
    zero_shot: float | None = Field(
        description="Mean accuracy, 0 to 1, of the paper's five tasks; of the same two, if the job "
        "asked them."
    )
    dense_zero_shot: float | None
    quantized_weights: Literal["int8", "int4"] | None = Field(
        description="What quantized_perplexity was measured with; the weights here are plain."
    )
    quantized_perplexity: float | None
    warnings: list[str] = Field(description="Of the gate of the job behind it, at full depth.")
    evaluated_on: str | None
    num_parameters: int | None
    checkpoint: str | None
    is_published: bool = Field(
        description="False for what a job has found but not published: it has no checkpoint yet."
    )
    dtype: str | None
    max_positions: int | None
    is_loaded: bool = Field(description="Whether the next request has to wait for nothing.")
    weight_bytes: int = Field(
        description="Of its weights in memory; 0 for a view, which has those of its parent."
    )
    kv_cache_bytes: int = Field(
        description="Of the cache of its running requests; names of the same blocks share one."
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
