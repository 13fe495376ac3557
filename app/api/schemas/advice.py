"""The response body of advice: which depth of a model to take."""

from typing import Literal

from pydantic import BaseModel, Field

from app.api.schemas.bodies import kind


class LimitsView(BaseModel):
    max_ratio: float = Field(
        description="Maximum perplexity relative to the dense model, on every text."
    )
    min_speedup: float = Field(description="Minimum speed-up per token.")
    min_probe: float | None = Field(description="Minimum probe score; null for no limit.")


class EstimateWithEnds(BaseModel):
    value: float = Field(description="Point estimate.")
    low: float | None = Field(description="Lower bound of the 95 % interval; null if unknown.")
    high: float | None = Field(description="Upper bound of the 95 % interval; null if unknown.")


class AdvisedDepthView(BaseModel):
    name: str = Field(description="Model name for generation requests.")
    short_name: str = Field(description="The name without the model, e.g. @-3.")
    num_removed: int = Field(description="Number of removed blocks.")
    num_blocks: int = Field(description="Number of remaining blocks.")
    speedup: EstimateWithEnds | None = Field(
        description="Speed-up per token over the dense model; null if unknown."
    )
    is_measured: bool = Field(
        description="Whether the speed-up was measured; otherwise it is predicted."
    )
    ratios: dict[str, EstimateWithEnds] = Field(
        description="Perplexity relative to the dense model, by text domain."
    )
    parameters: float | None = Field(
        description="Number of parameters relative to the dense model; null if unknown."
    )
    probe_score: float | None = Field(description="Probe score; null if not measured.")
    dense_probe_score: float | None = Field(description="Probe score of the dense model.")
    verdict: Literal["kept", "exceeded", "undecided"] = Field(
        description="Whether the depth meets the limits, judged by its intervals."
    )
    failing: list[str] = Field(
        description="Limits that the depth does not meet: speed, quality, a text domain, or probe."
    )
    because: str = Field(description="Why the depth does not meet the limits; empty if it does.")


class AdviceView(BaseModel):
    """Recommended depth of a model."""

    object: Literal["advice"] = kind("advice")
    model: str = Field(description="The dense model.")
    limits: LimitsView = Field(description="Limits that a depth must meet.")
    taken: str | None = Field(
        description="The recommended depth; null if no depth is shown to meet the limits."
    )
    nearest: str | None = Field(
        description="The depth that the sentence describes if none is recommended."
    )
    sentence: str = Field(description="The recommendation in one sentence.")
    depths: list[AdvisedDepthView] = Field(
        description="Depths of the newest removal order and of healed ones, least pruned first."
    )
    missing: list[str] = Field(
        description="Missing measurements, each with the command that makes it."
    )
