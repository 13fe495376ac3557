"""The wire format of comparisons."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

from app.api.schemas.generate import MAX_PROMPTS, ModelName, PromptsBody, TimingsView

MAX_MODELS = 8
MAX_REPEATS = 64


class CompareBody(PromptsBody):
    """The same prompts, seed and sampling on two or more variants of one dense model.

    Prompts times models times repeats may be 256 at most.
    """

    models: list[ModelName] = Field(min_length=2, max_length=MAX_MODELS)
    baseline: ModelName | None = Field(
        default=None, description="One of the models; by default the first."
    )
    repeats: Annotated[int, Field(ge=1, le=MAX_REPEATS)] = Field(
        default=5, description="Rounds; intervals and verdicts need two, good ones need more."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.baseline is not None and self.baseline not in self.models:
            raise ValueError("baseline: expected one of the models")
        number = len(self.prompts) * len(self.models) * self.repeats
        if number > MAX_PROMPTS:
            raise ValueError(
                f"{len(self.prompts)} prompts, {len(self.models)} models and {self.repeats} "
                f"repeats make {number} answers: {MAX_PROMPTS} are allowed; ask for fewer"
            )
        return self


class TokenTextView(BaseModel):
    token_id: int
    token: str


class DivergenceView(BaseModel):
    """The first token that differs; null for the answer that has come to its end there."""

    position: int = Field(description="Of the token in the answer, from 0.")
    baseline: TokenTextView | None
    model: TokenTextView | None


class ComparedOutputView(BaseModel):
    """What one model says to one prompt: text, tokens and quality of the first repeat, and the
    timings of every repeat.
    """

    model: str
    variant: Literal["dense", "pruned"]
    text: str
    finish_reason: str
    completion_tokens: int
    timings: list[TimingsView]
    agreement: float = Field(
        description="Share, 0 to 1, of the longer answer's tokens that come before the first "
        "difference from the baseline's answer; 1 for the same answer only."
    )
    first_divergence: DivergenceView | None
    mean_logprob: float | None = Field(
        description="Of a token of this answer under the dense model, in nats; null without it."
    )
    logprob_gap: float | None = Field(
        description="That minus the baseline's: below 0 the dense model finds this less likely."
    )


class ComparedPromptView(BaseModel):
    index: int
    prompt_tokens: int
    outputs: list[ComparedOutputView] = Field(description="In the order of the models.")


class SpeedupView(BaseModel):
    """Mean time of the baseline over that of the model, with its 95 % interval over the repeats."""

    ratio: float
    low: float | None
    high: float | None
    verdict: Literal["faster", "slower", "no difference", "undecided"]
    reason: str


class ComparedModelView(BaseModel):
    """One model against the baseline, over all prompts."""

    model: str
    agreement: float = Field(description="Mean over the prompts.")
    logprob_gap: float | None = Field(description="Likewise.")
    tpot: SpeedupView | None = Field(description="Per token behind the first; null for one token.")
    ttft: SpeedupView | None
    e2e: SpeedupView | None = Field(description="No verdict where answers differ in length.")


class CompareView(BaseModel):
    id: str
    object: Literal["comparison"] = "comparison"
    created_at: float
    models: list[str]
    baseline: str
    repeats: int
    seed: int | None = Field(description="That was drawn, if none was given; null for greedy.")
    prompts: list[ComparedPromptView]
    results: list[ComparedModelView] = Field(description="Of all models but the baseline.")
