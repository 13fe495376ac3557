"""Request and response bodies of ``/generate``, ``/models`` and the health routes."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field, StrictBool, StringConstraints

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
    """One or many prompts, and how to continue them. Temperature 0 is greedy."""

    prompt: Prompt | Annotated[list[Prompt], Field(min_length=1, max_length=MAX_PROMPTS)] = Field(
        description="A prompt, or a list of prompts."
    )
    stop: StopStrings = Field(
        default_factory=list, description="An output ends before any of these strings."
    )

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stop_strings(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop


CACHE_SALT = (
    "Only requests with the same text here share what was read of their prompts, as in vLLM. "
    "Refused for a model of another server that is not declared to take it."
)


class GenerateBody(PromptsBody):
    """The prompts are generated together as one batch."""

    model: ModelName = Field(description="A model, a variant or an alias.")
    return_token_ids: StrictBool = documented(False, "Whether outputs have their token ids.")
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
    cache_salt: str = Field(default="", max_length=256, description=CACHE_SALT)
    stream: StrictBool = documented(False, "Respond with server-sent events.")


class TimingsView(BaseModel):
    """Durations in seconds. ``tpot_s`` is the mean time per token after the first."""

    queue_s: float = Field(description="From the arrival of the request to its first step.")
    ttft_s: float | None = Field(
        description="Time to first token, from the arrival; null without a token."
    )
    tpot_s: float | None = Field(
        description="Mean time per output token after the first; null for a single token."
    )
    e2e_s: float = Field(description="From the arrival to the end of the output.")


class LogprobView(BaseModel):
    token_id: int | None = Field(description="Null for a model of another server.")
    token: str = Field(description="The text of the token.")
    logprob: float = Field(description="Natural logarithm of its probability.")


class TokenView(LogprobView):
    """A generated token. Log-probabilities are those before any sampling parameter applies."""

    top: list[LogprobView] = Field(description="The likeliest tokens at this position.")


class OutputView(BaseModel):
    index: int = Field(description="Index of the prompt, from 0.")
    text: str = Field(description="The generated text, without the prompt.")
    finish_reason: str = Field(description="Why it ended: stop, length, timeout, abort or error.")
    prompt_tokens: int = Field(description="Number of tokens of the prompt.")
    completion_tokens: int = Field(description="Number of generated tokens.")
    timings: TimingsView = Field(description="Durations of this output.")
    token_ids: list[int] | None = optional("Generated tokens; null unless asked for.")
    logprobs: list[TokenView] | None = optional("Of each generated token; null unless asked for.")


class OutputDeltaView(BaseModel):
    """The delta of one output: final text, and its tokens."""

    index: int = Field(description="Index of the prompt, from 0.")
    text: str = Field(description="The next part of the text.")
    token_ids: list[int] | None = optional("Of this part; null unless asked for.")
    logprobs: list[TokenView] | None = optional("Of this part; null unless asked for.")


class GenerateView(BaseModel):
    id: str = Field(description="Of this response.")
    object: Literal["generation"] = kind("generation")
    model: str = Field(description="The model that has generated, also if an alias was given.")
    variant: Literal["dense", "pruned"] = Field(description="Whether blocks were removed from it.")
    created_at: float = Field(description="Seconds since the epoch.")
    outputs: list[OutputView] = Field(description="One for each prompt, in its order.")


class RepairView(BaseModel):
    """How the blocks of a pruned variant are corrected for those that are missing."""

    method: Method = Field(
        description="ridge: refitted matrices; scale: a factor of the hidden states, in "
        "checkpoints of earlier releases."
    )
    bytes: int = Field(description="Of the weights that the variant does not share.")
    shared_bytes: int = Field(
        description="Of the blocks that all healed depths of its checkpoint share, once for all of "
        "them; 0 where they share those of the dense model."
    )
    raw: str = Field(description="Name of the same blocks without repair.")
    is_healed: bool = Field(description="Whether it was trained behind the repair.")


class Int8View(BaseModel):
    """The form of a model with int8 weights in its blocks and its head."""

    id: str = Field(description="Its name, which loads it.")
    weight_bytes: int = Field(description="Its weights, if no other form of the model is loaded.")


class DomainView(BaseModel):
    """Quality on the held-out text of one domain."""

    domain: str = Field(description="Name of the domain.")
    text: str = Field(description="The text, with the number and the length of its windows.")
    digest: str = Field(
        description="sha256 of the token ids. Perplexities of equal digests can be compared."
    )
    perplexity: float = Field(description="Of the variant as it is served.")
    raw_perplexity: float = Field(description="Without repair; the same for an unrepaired model.")
    dense_perplexity: float = Field(description="Of the dense model on the same windows.")
    dense_perplexity_low: float | None = Field(
        description="Lower end of its 95 % interval on text like this. Null, as all ends of "
        "intervals, if there are fewer than five documents or windows."
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
    repaired_perplexity: float | None = Field(
        description="With repair and without healing. Null without a repair."
    )
    repaired_ratio: float | None = Field(description="repaired_perplexity / dense_perplexity.")
    repaired_ratio_low: float | None = Field(
        description="Lower end of the same interval of repaired_ratio."
    )
    repaired_ratio_high: float | None = Field(description="Upper end of that interval.")
    control_perplexity: float | None = Field(
        description="Of the dense model after the training that healed this one: as far as it is "
        "below dense_perplexity, the gain is due to the text. Null without a healing or control."
    )
    control_ratio: float | None = Field(description="control_perplexity / dense_perplexity.")
    control_ratio_low: float | None = Field(
        description="Lower end of the same interval of control_ratio."
    )
    control_ratio_high: float | None = Field(description="Upper end of that interval.")
    recovered: float | None = Field(
        description="Share of the lost nats per token that repair and healing give back. Null "
        "without either, or if nothing was lost."
    )


class AliasBody(Body):
    target: ModelName = Field(description="A model, a published variant, or another alias.")


class MeasuredSpeedupView(BaseModel):
    """Mean time per token, dense over pruned, as it was measured on this machine."""

    ratio: float = Field(description="Above 1, the pruned model is faster.")
    low: float | None = Field(description="Lower end of its 95 % interval; null with one repeat.")
    high: float | None = Field(description="Upper end of that interval.")
    scenario: str = Field(
        description="What measured it: a scenario of sleb bench, or comparison for POST /compare."
    )
    measured_at: float = Field(description="Seconds since the epoch.")


class ServerView(BaseModel):
    """A vLLM that this service runs for one model."""

    state: Literal["starting", "ready", "restarting", "failed", "stopped"] = Field(
        description="failed: it is started again for a request after a minute, or once the model "
        "was unloaded."
    )
    detail: str | None = Field(description="Why it is not ready; null if there is no reason.")
    num_restarts: int = Field(description="How often it was started again after it had ended.")
    version: str | None = Field(description="Version of vLLM; null while it does not run.")


class ModelView(BaseModel):
    id: str = Field(description="The name to generate with.")
    aliases: list[str] = Field(description="Other names of the model, set with PUT.")
    object: Literal["model"] = kind("model")
    variant: Literal["dense", "pruned"] = Field(description="Whether blocks were removed from it.")
    backend: Literal["engine", "vllm", "openai"] = Field(
        description="engine: this service; vllm: a vLLM that this service runs; openai: another "
        "server with OpenAI's API."
    )
    server: ServerView | None = Field(
        description="The vLLM of the model; null for other backends, and while none is started."
    )
    parent: str | None = Field(
        description="The dense model that it was made of; null for a dense model."
    )
    num_blocks: int = Field(description="Number of remaining blocks.")
    removed_blocks: list[int] = Field(
        description="Indices of the removed blocks, in the order of their removal."
    )
    losses: list[float] = Field(
        description="On the calibration text, in nats per token, for 0, 1, 2 ... removed blocks."
    )
    predicted_speedup: float | None = Field(
        description="Time of a decode step of one sequence, dense over pruned, by the times of the "
        "blocks on the machine of the job. Null for a dense model and while the job runs."
    )
    measured_speedup: MeasuredSpeedupView | None = Field(
        description="Of any variant with as many blocks; null if none was measured."
    )
    perplexity: float | None = Field(
        description="On the text of evaluated_on; null if the job measured none."
    )
    dense_perplexity: float | None = Field(
        description="Of the dense model on the same text; null as perplexity."
    )
    probe_score: float | None = Field(
        description="0 to 1. Known for the dense model and for a job's full depth, if its gate "
        "uses the probe."
    )
    dense_probe_score: float | None = Field(description="The same of the dense model.")
    zero_shot: float | None = Field(
        description="Mean accuracy, 0 to 1, on the paper's five tasks. Known for the same two, if "
        "the job measured it."
    )
    dense_zero_shot: float | None = Field(description="The same of the dense model.")
    quantized_weights: Literal["int8", "int4"] | None = Field(
        description="Precision of quantized_perplexity. The weights of the model are not quantized."
    )
    quantized_perplexity: float | None = Field(
        description="With quantized weights, on the text of evaluated_on; null if not measured."
    )
    warnings: list[str] = Field(description="Warnings of the job's quality gate, at full depth.")
    evaluated_on: str | None = Field(description="The text of perplexity, with its windows.")
    domains: list[DomainView] = Field(
        description="Quality by domain of text; empty if the job measured none."
    )
    num_parameters: int | None = Field(
        description="Number of parameters; null if no job has counted them."
    )
    checkpoint: str | None = Field(
        description="The checkpoint whose removal order it belongs to; null without one."
    )
    is_published: bool = Field(description="False until the job publishes a checkpoint.")
    repair: RepairView | None = Field(description="Null for a variant that is not repaired.")
    int8: Int8View | None = Field(
        description="Null for an int8 model, a model of another server, and a family that has none."
    )
    dtype: str | None = Field(
        description="Type of the weights, of an int8 model of those that stay; null if it is not "
        "known here."
    )
    max_positions: int | None = Field(
        description="Longest context in tokens; null if it is not known here."
    )
    is_loaded: bool = Field(description="Whether requests run without loading weights first.")
    weight_bytes: int = Field(
        description="Weights in memory. A view shares those of its parent, and has 0 or the bytes "
        "of its repair."
    )
    kv_cache_bytes: int = Field(
        description="KV cache of running requests, shared by names of the same blocks."
    )
    error: str | None = Field(description="Why the model cannot be served; null if it can.")


class ModelList(BaseModel):
    object: Literal["list"] = kind("list")
    data: list[ModelView] = Field(description="The models.")


class HealthView(BaseModel):
    status: str = Field(description="What was found, in a word or two.")
    detail: str | None = optional("Why; null if nothing is wrong.")


class ReadyView(HealthView):
    kernels: Literal["compiling", "timing", "ready", "failed"] = Field(
        description="What is done for the kernels of loaded models, while requests run. Where "
        "compiling has failed, it is tried again, and steps run torch's operations."
    )
    num_workers: int | None = Field(
        description="Workers of pruning jobs that are alive, counted once a second; null if the "
        "job store does not answer. Text is generated without any."
    )
    vllm: dict[str, ServerView] = Field(
        default_factory=dict, description="The vLLM servers of this service, by model."
    )


class VersionView(BaseModel):
    sleb_serve: str = Field(description="Version of this service.")
    torch: str = Field(description="Version of torch.")
    transformers: str = Field(description="Version of transformers.")
