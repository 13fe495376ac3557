"""Request and response bodies of ``POST /compare``."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from app.api.schemas.generate import MAX_PROMPTS, ModelName, PromptsBody, TimingsView

MAX_MODELS = 8
MAX_REPEATS = 64


class CompareBody(PromptsBody):
    """The same prompts, seed and sampling on two or more variants of one dense model.

    Prompts × models × repeats must not exceed 256.
    """

    models: list[ModelName] = Field(min_length=2, max_length=MAX_MODELS)
    baseline: ModelName | None = Field(
        default=None, description="One of the models; by default the first."
    )
    repeats: Annotated[int, Field(ge=1, le=MAX_REPEATS)] = Field(
        default=5,
        description="Repeats of every prompt; intervals and verdicts need at least 2.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.baseline is not None and self.baseline not in self.models:
            raise ValueError("baseline: expected one of the models")
        number = len(self.prompts) * len(self.models) * self.repeats
        if number > MAX_PROMPTS:
            raise ValueError(
                f"{len(self.prompts)} prompts, {len(self.models)} models and {self.repeats} "
                f"repeats make {number} outputs: at most {MAX_PROMPTS} are allowed"
            )
        return self


class TokenTextView(BaseModel):
    token_id: int
    token: str


class DivergenceView(BaseModel):
    """The first token that differs. Null for an output that ends before it."""

    position: int = Field(description="Index of the token in the output, from 0.")
    baseline: TokenTextView | None
    model: TokenTextView | None


class ComparedOutputView(BaseModel):
    """The output of one model for one prompt, of the first repeat; timings of every repeat."""

    model: str
    variant: Literal["dense", "pruned"]
    text: str
    finish_reason: str
    completion_tokens: int
    timings: list[TimingsView]
    agreement: float = Field(
        description="Tokens before the first difference from the baseline's output, as a share of "
        "the longer output; 1 only for equal outputs."
    )
    first_divergence: DivergenceView | None
    mean_logprob: float | None = Field(
        description="Mean log probability of a token under the dense model, in nats; null "
        "without a dense model."
    )
    logprob_gap: float | None = Field(
        description="mean_logprob minus that of the baseline: below 0, this output is less likely."
    )


class ComparedPromptView(BaseModel):
    index: int
    prompt_tokens: int
    outputs: list[ComparedOutputView] = Field(
        description="One per model, in the order of the request."
    )


class SpeedupView(BaseModel):
    """Mean time of the baseline divided by that of the model, with a 95 % confidence interval."""

    ratio: float
    low: float | None
    high: float | None
    verdict: Literal["faster", "slower", "no difference", "undecided"]
    reason: str


class ComparedModelView(BaseModel):
    """One model against the baseline, over all prompts."""

    model: str
    agreement: float = Field(description="Mean over the prompts.")
    logprob_gap: float | None = Field(description="Mean over the prompts.")
    tpot: SpeedupView | None = Field(
        description="Time per output token after the first; null for one token."
    )
    ttft: SpeedupView | None
    e2e: SpeedupView | None = Field(description="No verdict if outputs differ in length.")


class CompareView(BaseModel):
    id: str
    object: Literal["comparison"] = "comparison"
    created_at: float
    models: list[str]
    baseline: str
    repeats: int
    seed: int | None = Field(description="Drawn if none was given; null for greedy decoding.")
    prompts: list[ComparedPromptView]
    results: list[ComparedModelView] = Field(description="One per model except the baseline.")
