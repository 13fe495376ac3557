"""Request and response bodies of ``POST /compare``."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.api.schemas.bodies import documented, kind, optional
from app.api.schemas.generate import ModelName, PromptsBody, TimingsView

MAX_MODELS = 8
MAX_REPEATS = 64
MAX_SECONDS = 600.0


class CompareBody(PromptsBody):
    """The same prompts, seed and sampling parameters for two or more variants of one dense model.

    Prompts × models × repeats must not exceed 256; max_seconds adds no repeats beyond that. With
    two or more repeats, the baseline also runs a second time, as the control.
    """

    models: list[ModelName] = Field(
        min_length=2,
        max_length=MAX_MODELS,
        description="Variants of one dense model; may include the dense model.",
    )
    baseline: ModelName | None = optional("One of the models; the first by default.")
    repeats: Annotated[int, Field(ge=1, le=MAX_REPEATS)] = documented(
        5, "Repeats per prompt; intervals and verdicts need at least 2."
    )
    max_seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = documented(
        0,
        "Add repeats until every per-token interval, including that of the control, is "
        "within 3 % of its ratio, or this many seconds have passed.",
    )
    stream: bool = documented(
        False,
        "Send server-sent events: progress with the turns that are done, then done with the "
        "comparison, or error with a problem document.",
    )


class CompareProgressView(BaseModel):
    """How far a comparison is. In a turn, one model generates the outputs of all prompts."""

    object: Literal["comparison.progress"] = kind("comparison.progress")
    done: int = Field(description="Turns that have ended.")
    total: int = Field(description="All turns; max_seconds may add some.")


class TokenTextView(BaseModel):
    token_id: int = Field(description="Token id.")
    token: str = Field(description="Text of the token.")


class DivergenceView(BaseModel):
    """The first token that differs. Null for an output that ends earlier."""

    position: int = Field(description="Index of the token in the output, from 0.")
    baseline: TokenTextView | None = Field(
        description="Token in the baseline's output; null if it has already ended."
    )
    model: TokenTextView | None = Field(
        description="Token in this output; null if it has already ended."
    )


class ComparedOutputView(BaseModel):
    """Output of one model for one prompt in the first repeat, with the timings of every repeat."""

    model: str = Field(description="Model that generated the output.")
    variant: Literal["dense", "pruned"] = Field(description="Whether the model is pruned.")
    text: str = Field(description="Generated text of the first repeat.")
    finish_reason: str = Field(description="Finish reason: stop, length, timeout, abort or error.")
    completion_tokens: int = Field(description="Number of generated tokens.")
    timings: list[TimingsView] = Field(description="Timings, one per repeat.")
    agreement: float = Field(
        description="Fraction of the longer output's tokens before the first difference from the "
        "baseline; 1 only for identical outputs."
    )
    first_divergence: DivergenceView | None = Field(
        description="First difference from the baseline; null for the baseline and for identical "
        "outputs."
    )
    mean_logprob: float | None = Field(
        description="Mean log probability per token under the dense model, in nats; null without a "
        "dense model."
    )
    logprob_gap: float | None = Field(
        description="mean_logprob minus that of the baseline; negative if this output is less "
        "likely."
    )


class ComparedPromptView(BaseModel):
    index: int = Field(description="Index of the prompt, from 0.")
    prompt_tokens: int = Field(description="Number of prompt tokens.")
    outputs: list[ComparedOutputView] = Field(
        description="Outputs, one per model, in the order of the request."
    )


class SpeedupView(BaseModel):
    """Mean time of the baseline divided by that of the model, with a 95 % confidence interval."""

    ratio: float = Field(description="Speed-up; above 1, the model is faster than the baseline.")
    low: float | None = Field(description="Lower bound of the interval; null with a single repeat.")
    high: float | None = Field(
        description="Upper bound of the interval; null with a single repeat."
    )
    verdict: Literal["faster", "slower", "no difference", "undecided"] = Field(
        description="Result of comparing the interval with that of the control."
    )
    reason: str = Field(description="Reason for the verdict, or why it is undecided.")


class SpeedupsView(BaseModel):
    """Speed-ups by kind of time."""

    tpot: SpeedupView | None = Field(
        description="Time per output token after the first; null for a single token."
    )
    ttft: SpeedupView | None = Field(description="Time to first token.")
    e2e: SpeedupView | None = Field(
        description="Total time; no verdict if outputs differ in length."
    )


class ControlView(SpeedupsView):
    """The baseline measured against itself, in the same way: the noise floor.

    A speed-up whose interval overlaps that of the control has no verdict.
    """

    agreement: float = Field(
        description="Mean agreement of the baseline's outputs with its own second run, over "
        "prompts and repeats."
    )


class ComparedModelView(SpeedupsView):
    """One model against the baseline, over all prompts."""

    model: str = Field(description="Model that is compared with the baseline.")
    agreement: float = Field(description="Mean agreement over the prompts.")
    logprob_gap: float | None = Field(description="Mean logprob_gap over the prompts.")
    kernels: dict[str, str] = Field(
        description="Kernels that ran, by purpose. If the baseline used another kernel for the "
        "same purpose, there is no verdict."
    )


class EngineView(BaseModel):
    """The backend that generated all outputs of a result."""

    name: Literal["own", "vllm"] = Field(description="own: the engine of this service.")
    version: str = Field(description="Version of this service or of vLLM.")
    arguments: list[str] = Field(description="Arguments for vLLM from SLEB_VLLM_ARGS.")


class CompareView(BaseModel):
    id: str = Field(description="Id of the response.")
    object: Literal["comparison"] = kind("comparison")
    created_at: float = Field(description="Creation time, in seconds since the epoch.")
    models: list[str] = Field(description="Compared models.")
    baseline: str = Field(description="Model that the others are compared with.")
    repeats: int = Field(description="Repeats per prompt.")
    seed: int | None = Field(
        description="Seed; drawn at random if none was given, null for greedy decoding."
    )
    prompts: list[ComparedPromptView] = Field(description="Outputs by prompt.")
    prompt_reading: Literal["in full"] = documented(
        "in full",
        "Every model processes every prompt from its first token, regardless of the prefix cache.",
    )
    engine: EngineView = Field(description="Backend that generated all outputs.")
    baseline_kernels: dict[str, str] = Field(description="Kernels of the baseline.")
    control: ControlView | None = Field(
        description="Second run of the baseline; null with a single repeat."
    )
    results: list[ComparedModelView] = Field(
        description="Results, one per model except the baseline."
    )
