"""Request and response bodies of ``POST /compare``."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.api.schemas.bodies import documented, kind, optional
from app.api.schemas.generate import ModelName, PromptsBody, TimingsView

MAX_MODELS = 8
MAX_REPEATS = 64
MAX_SECONDS = 600.0


class CompareBody(PromptsBody):
    """The same prompts, seed and sampling on two or more variants of one dense model.

    Prompts × models × repeats must not exceed 256; max_seconds adds no repeats beyond that. With
    two or more repeats, the baseline also runs a second time, as the control.
    """

    models: list[ModelName] = Field(
        min_length=2,
        max_length=MAX_MODELS,
        description="Variants of one dense model, or that model itself.",
    )
    baseline: ModelName | None = optional("One of the models; by default the first.")
    repeats: Annotated[int, Field(ge=1, le=MAX_REPEATS)] = documented(
        5, "Repeats of every prompt; intervals and verdicts need at least 2."
    )
    max_seconds: Annotated[float, Field(ge=0, le=MAX_SECONDS)] = documented(
        0,
        "More repeats, until every interval per token is within 3 % of its ratio, the "
        "control's too, or so many seconds have passed.",
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
    token_id: int = Field(description="Id of the token.")
    token: str = Field(description="Text of the token.")


class DivergenceView(BaseModel):
    """The first token that differs. Null for an output that ends before it."""

    position: int = Field(description="Index of the token in the output, from 0.")
    baseline: TokenTextView | None = Field(
        description="The token of the baseline's output; null behind its end."
    )
    model: TokenTextView | None = Field(
        description="The token of this output; null behind its end."
    )


class ComparedOutputView(BaseModel):
    """The output of one model for one prompt, of the first repeat; timings of every repeat."""

    model: str = Field(description="The model that has generated.")
    variant: Literal["dense", "pruned"] = Field(description="Whether blocks were removed from it.")
    text: str = Field(description="The generated text of the first repeat.")
    finish_reason: str = Field(description="Why it ended: stop, length, timeout, abort or error.")
    completion_tokens: int = Field(description="Number of generated tokens.")
    timings: list[TimingsView] = Field(description="Of each repeat.")
    agreement: float = Field(
        description="Tokens before the first difference from the baseline's output, as a share of "
        "the longer output; 1 only for equal outputs."
    )
    first_divergence: DivergenceView | None = Field(
        description="Null for the baseline and for an equal output."
    )
    mean_logprob: float | None = Field(
        description="Mean log probability of a token under the dense model, in nats; null "
        "without a dense model."
    )
    logprob_gap: float | None = Field(
        description="mean_logprob minus that of the baseline: below 0, this output is less likely."
    )


class ComparedPromptView(BaseModel):
    index: int = Field(description="Index of the prompt, from 0.")
    prompt_tokens: int = Field(description="Number of tokens of the prompt.")
    outputs: list[ComparedOutputView] = Field(
        description="One per model, in the order of the request."
    )


class SpeedupView(BaseModel):
    """Mean time of the baseline divided by that of the model, with a 95 % confidence interval."""

    ratio: float = Field(description="Above 1, the model is faster than the baseline.")
    low: float | None = Field(description="Lower end of the interval; null with a single repeat.")
    high: float | None = Field(description="Upper end of the interval; null with a single repeat.")
    verdict: Literal["faster", "slower", "no difference", "undecided"] = Field(
        description="What the interval shows, compared with that of the control."
    )
    reason: str = Field(description="What the verdict follows from, or why there is none.")


class SpeedupsView(BaseModel):
    """Speed-ups by the kind of time."""

    tpot: SpeedupView | None = Field(
        description="Time per output token after the first; null for one token."
    )
    ttft: SpeedupView | None = Field(description="Time to first token.")
    e2e: SpeedupView | None = Field(description="No verdict if outputs differ in length.")


class ControlView(SpeedupsView):
    """The baseline measured against itself, in the same way: the noise floor.

    A speed-up whose interval overlaps that of the control has no verdict.
    """

    agreement: float = Field(
        description="Mean over prompts and repeats of the baseline's outputs with its own."
    )


class ComparedModelView(SpeedupsView):
    """One model against the baseline, over all prompts."""

    model: str = Field(description="The model that is compared with the baseline.")
    agreement: float = Field(description="Mean over the prompts.")
    logprob_gap: float | None = Field(description="Mean over the prompts.")
    kernels: dict[str, str] = Field(
        description="What computed it, by what it was for. Where the baseline had another kernel "
        "for the same, there is no verdict."
    )


class EngineView(BaseModel):
    """What generated for all models of a result."""

    name: Literal["own", "vllm"] = Field(description="own: the engine of this service.")
    version: str = Field(description="Of this service, or of vLLM.")
    arguments: list[str] = Field(description="What SLEB_VLLM_ARGS gives vLLM.")


class CompareView(BaseModel):
    id: str = Field(description="Of this response.")
    object: Literal["comparison"] = kind("comparison")
    created_at: float = Field(description="Seconds since the epoch.")
    models: list[str] = Field(description="The compared models.")
    baseline: str = Field(description="The model that the others are compared with.")
    repeats: int = Field(description="Number of repeats of every prompt.")
    seed: int | None = Field(description="Drawn if none was given; null for greedy decoding.")
    prompts: list[ComparedPromptView] = Field(description="The outputs for each prompt.")
    prompt_reading: Literal["in full"] = documented(
        "in full",
        "All models read every prompt from its first token each time, whatever "
        "requests have read before.",
    )
    engine: EngineView = Field(description="What generated for all models.")
    baseline_kernels: dict[str, str] = Field(description="The kernels of the baseline.")
    control: ControlView | None = Field(
        description="The baseline a second time; null with a single repeat."
    )
    results: list[ComparedModelView] = Field(description="One per model except the baseline.")
