"""Request and response bodies of ``/generate``, ``/models`` and the health routes."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StrictBool, StringConstraints

from app.api.schemas.advice import TaskSharesView
from app.api.schemas.bodies import Body, documented, kind, optional
from app.api.schemas.sampling import SamplingFields
from app.engine.scheduling.sequence import MAX_TOP_LOGPROBS
from pruning.repair.record import Method

MAX_PROMPTS = 256
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Prompt = Annotated[str, StringConstraints(min_length=1)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopStrings = StopString | Annotated[list[StopString], Field(max_length=16)]


class PromptsBody(Body, SamplingFields):
    """One or more prompts and the sampling parameters. Temperature 0 means greedy decoding."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)] = Field(
        description="A prompt, or a list of prompts."
    )
    stop: StopStrings = Field(
        default_factory=list, description="Stop strings; the output ends before any of them."
    )

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop


CACHE_SALT = (
    "Requests share cached prompt prefixes only with requests that have the same "
    "salt, as in vLLM. Rejected for models on external servers that are not "
    "declared to support it."
)


class GenerateBody(PromptsBody):
    """The prompts are generated together as one batch."""

    model: ModelName = Field(description="A model, a variant or an alias.")
    return_token_ids: StrictBool = documented(False, "Return the token ids of outputs.")
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="Number of alternative tokens to return with each token's log probability.",
    )
    timeout_s: float | None = Field(
        default=None,
        gt=0,
        le=86_400,
        description="Time limit in seconds; longer outputs end with finish_reason timeout.",
    )
    cache_salt: str = Field(default="", max_length=256, description=CACHE_SALT)
    stream: StrictBool = documented(False, "Respond with server-sent events.")


class TimingsView(BaseModel):
    """Durations in seconds. ``tpot_s`` is the mean time per token after the first."""

    queue_s: float = Field(description="Time from the request's arrival to its first step.")
    ttft_s: float | None = Field(
        description="Time to first token, from the request's arrival; null without a token."
    )
    tpot_s: float | None = Field(
        description="Mean time per output token after the first; null for a single token."
    )
    e2e_s: float = Field(description="Time from the request's arrival to the end of the output.")


class LogprobView(BaseModel):
    token_id: int | None = Field(description="Token id; null for models on external servers.")
    token: str = Field(description="Text of the token.")
    logprob: float = Field(description="Natural logarithm of the token's probability.")


class TokenView(LogprobView):
    """A generated token. Log-probabilities are those before any sampling parameter applies."""

    top: list[LogprobView] = Field(description="Most likely tokens at this position.")


class OutputView(BaseModel):
    index: int = Field(description="Index of the prompt, from 0.")
    text: str = Field(description="Generated text, without the prompt.")
    finish_reason: str = Field(description="Finish reason: stop, length, timeout, abort or error.")
    prompt_tokens: int = Field(description="Number of prompt tokens.")
    completion_tokens: int = Field(description="Number of generated tokens.")
    timings: TimingsView = Field(description="Durations of this output.")
    token_ids: list[int] | None = optional("Generated token ids; null unless requested.")
    logprobs: list[TokenView] | None = optional(
        "Log probability of each generated token; null unless requested."
    )


class OutputDeltaView(BaseModel):
    """The delta of one output: its next text and tokens."""

    index: int = Field(description="Index of the prompt, from 0.")
    text: str = Field(description="Next part of the text.")
    token_ids: list[int] | None = optional("Token ids of this part; null unless requested.")
    logprobs: list[TokenView] | None = optional(
        "Log probabilities of this part; null unless requested."
    )


class GenerateView(BaseModel):
    id: str = Field(description="Id of the response.")
    object: Literal["generation"] = kind("generation")
    model: str = Field(description="Model that generated the outputs, with aliases resolved.")
    variant: Literal["dense", "pruned"] = Field(description="Whether the model is pruned.")
    created_at: float = Field(description="Creation time, in seconds since the epoch.")
    outputs: list[OutputView] = Field(
        description="Outputs, one per prompt, in the order of the request."
    )


class RepairView(BaseModel):
    """How the remaining blocks of a pruned variant are repaired."""

    method: Method = Field(
        description="ridge: refitted matrices; scale: a factor of the hidden states, in "
        "checkpoints of earlier releases."
    )
    bytes: int = Field(description="Bytes of the weights that the variant does not share.")
    shared_bytes: int = Field(
        description="Bytes of weights that all healed depths of its checkpoint share, counted "
        "once; 0 if they share those of the dense model."
    )
    raw: str = Field(description="Name of the variant with the same blocks without repair.")
    is_healed: bool = Field(
        description="Whether the variant was healed (trained) after the repair."
    )


class Int8View(BaseModel):
    """The variant of a model with int8 weights in its blocks and its head."""

    id: str = Field(description="Name of the variant; a request for it loads it.")
    weight_bytes: int = Field(
        description="Bytes of its weights, if no other variant of the model is loaded."
    )


class DomainView(BaseModel):
    """Quality on the held-out text of one domain."""

    domain: str = Field(description="Name of the domain.")
    text: str = Field(
        description="Description of the text, with the number and length of its windows."
    )
    digest: str = Field(
        description="SHA-256 of the token ids; perplexities with equal digests can be compared."
    )
    perplexity: float = Field(description="Perplexity of the variant as served.")
    raw_perplexity: float = Field(
        description="Perplexity without repair; equal to perplexity for an unrepaired model."
    )
    dense_perplexity: float = Field(
        description="Perplexity of the dense model on the same windows."
    )
    dense_perplexity_low: float | None = Field(
        description="Lower bound of the 95 % interval for text of this kind. All bounds are "
        "null with fewer than five documents or windows."
    )
    dense_perplexity_high: float | None = Field(description="Upper bound of the same interval.")
    ratio: float = Field(description="perplexity / dense_perplexity.")
    ratio_low: float | None = Field(
        description="Lower bound of the 95 % interval of ratio, from per-window differences to the "
        "dense model."
    )
    ratio_high: float | None = Field(description="Upper bound of the same interval.")
    raw_ratio: float = Field(description="raw_perplexity / dense_perplexity.")
    raw_ratio_low: float | None = Field(
        description="Lower bound of the 95 % interval of raw_ratio."
    )
    raw_ratio_high: float | None = Field(description="Upper bound of the same interval.")
    repaired_perplexity: float | None = Field(
        description="Perplexity with repair but without healing; null without a repair."
    )
    repaired_ratio: float | None = Field(description="repaired_perplexity / dense_perplexity.")
    repaired_ratio_low: float | None = Field(
        description="Lower bound of the 95 % interval of repaired_ratio."
    )
    repaired_ratio_high: float | None = Field(description="Upper bound of the same interval.")
    control_perplexity: float | None = Field(
        description="Perplexity of the dense model after the same training as the healed model. If "
        "it is below dense_perplexity, that part of the gain is due to the text. Null "
        "without healing or control."
    )
    control_ratio: float | None = Field(description="control_perplexity / dense_perplexity.")
    control_ratio_low: float | None = Field(
        description="Lower bound of the 95 % interval of control_ratio."
    )
    control_ratio_high: float | None = Field(description="Upper bound of the same interval.")
    recovered: float | None = Field(
        description="Fraction of the added loss that repair and healing recover; null without "
        "either, or if the loss did not increase."
    )


class AliasBody(Body):
    target: ModelName = Field(description="A model, a published variant, or another alias.")


class MeasuredSpeedupView(BaseModel):
    """Speed-up of the mean time per token over the dense model, measured on this machine."""

    ratio: float = Field(description="Speed-up; above 1, the pruned model is faster.")
    low: float | None = Field(
        description="Lower bound of the 95 % interval; null with a single repeat."
    )
    high: float | None = Field(description="Upper bound of the same interval.")
    scenario: str = Field(
        description="Source of the measurement: a scenario of sleb bench, or comparison for POST "
        "/compare."
    )
    measured_at: float = Field(description="Time of the measurement, in seconds since the epoch.")


class ServerView(BaseModel):
    """A vLLM server that this service runs for one model."""

    state: Literal["starting", "ready", "restarting", "failed", "stopped"] = Field(
        description="State of the server. failed: it is restarted by a request after a minute, or "
        "after the model is unloaded."
    )
    detail: str | None = Field(description="Why the server is not ready; null otherwise.")
    num_restarts: int = Field(description="Number of restarts after the server exited.")
    version: str | None = Field(description="Version of vLLM; null while it is not running.")


class ModelView(BaseModel):
    id: str = Field(description="Model name for generation requests.")
    aliases: list[str] = Field(description="Other names of the model, set with PUT.")
    object: Literal["model"] = kind("model")
    variant: Literal["dense", "pruned"] = Field(description="Whether the model is pruned.")
    backend: Literal["engine", "vllm", "openai"] = Field(
        description="engine: this service; vllm: a vLLM server that this service runs; openai: an "
        "external server with the OpenAI API."
    )
    server: ServerView | None = Field(
        description="The vLLM server of the model; null for other backends, and if none was "
        "started."
    )
    parent: str | None = Field(description="Dense model of a variant; null for a dense model.")
    num_blocks: int = Field(description="Number of remaining blocks.")
    removed_blocks: list[int] = Field(
        description="Indices of the removed blocks, in order of removal."
    )
    losses: list[float] = Field(
        description="Loss on the calibration text, in nats per token, after 0, 1, 2, ... removals."
    )
    predicted_speedup: float | None = Field(
        description="Predicted speed-up of a decode step at batch size 1, from block times "
        "measured on the job's machine. Null for a dense model and while the job runs."
    )
    measured_speedup: MeasuredSpeedupView | None = Field(
        description="Measured speed-up of any variant with the same number of blocks; null if none "
        "was measured."
    )
    perplexity: float | None = Field(
        description="Perplexity on the text of evaluated_on; null if not measured."
    )
    dense_perplexity: float | None = Field(
        description="Perplexity of the dense model on the same text; null if not measured."
    )
    probe_score: float | None = Field(
        description="Probe score from 0 to 1; available for the dense model and for a job's full "
        "depth if its gate uses the probe."
    )
    dense_probe_score: float | None = Field(description="Probe score of the dense model.")
    tasks: TaskSharesView | None = Field(
        description="Tasks beside the dense model: of a job's full depth if the job asked them, "
        "and by `sleb eval`; null if not measured."
    )
    quantized_weights: Literal["int8", "int4", "w8a8"] | None = Field(
        description="Precision of quantized_perplexity. The weights of the model itself are not "
        "quantized."
    )
    quantized_perplexity: float | None = Field(
        description="Perplexity with quantized weights on the text of evaluated_on; null if not "
        "measured."
    )
    warnings: list[str] = Field(description="Warnings of the job's quality gate, at full depth.")
    evaluated_on: str | None = Field(
        description="Evaluation text of perplexity, with the number and length of its windows."
    )
    domains: list[DomainView] = Field(
        description="Quality by text domain; empty if the job measured none."
    )
    num_parameters: int | None = Field(
        description="Number of parameters; null if not counted by a job."
    )
    checkpoint: str | None = Field(
        description="Checkpoint with the model's removal order; null without one."
    )
    is_published: bool = Field(
        description="Whether the checkpoint is published; false while the job runs."
    )
    repair: RepairView | None = Field(
        description="Repair of the variant; null if it is not repaired."
    )
    int8: Int8View | None = Field(
        description="The int8 variant; null for int8 models, models on external servers, and "
        "families without int8 support."
    )
    dtype: str | None = Field(
        description="dtype of the weights; for an int8 model, of those that are not quantized. "
        "Null if unknown."
    )
    max_positions: int | None = Field(description="Context length in tokens; null if unknown.")
    is_loaded: bool = Field(description="Whether the weights are loaded.")
    weight_bytes: int = Field(
        description="Bytes of weights in memory. A view shares the weights of its parent, so it "
        "has 0 or the bytes of its repair."
    )
    kv_cache_bytes: int = Field(
        description="Bytes of the KV cache used by running requests, shared by all names of the "
        "same blocks."
    )
    error: str | None = Field(description="Why the model cannot be served; null if it can.")


class ModelList(BaseModel):
    object: Literal["list"] = kind("list")
    data: list[ModelView] = Field(description="Models that can be served.")


class HealthView(BaseModel):
    status: str = Field(description="Result of the check, in a word or two.")
    detail: str | None = optional("Reason for the result; null if nothing is wrong.")


class ReadyView(HealthView):
    kernels: Literal["compiling", "timing", "ready", "failed"] = Field(
        description="State of kernel compilation for loaded models, while requests run. If "
        "compilation failed, it is retried, and steps use torch's operations."
    )
    num_workers: int | None = Field(
        description="Workers of pruning jobs that are alive, counted once a second; null if the "
        "job store does not answer. Text is generated without any."
    )
    vllm: dict[str, ServerView] = Field(
        default_factory=dict, description="vLLM servers of this service, by model."
    )


class VersionView(BaseModel):
    version: str = Field(description="Version of this service, by vLLM's name.")
    sleb_serve: str = Field(description="Version of this service.")
    torch: str = Field(description="Version of torch.")
    transformers: str = Field(description="Version of transformers.")
