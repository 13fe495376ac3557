"""The response body of advice: which depth of a model to take."""

from typing import Literal

from pydantic import BaseModel, Field

from app.api.schemas.bodies import kind


class LimitsView(BaseModel):
    max_ratio: float = Field(description="Maximum of pruned / dense perplexity, on every text.")
    min_speedup: float = Field(description="Minimum speed-up per token.")
    min_probe: float | None = Field(description="Minimum score of the probe; null for none.")


class EstimateWithEnds(BaseModel):
    value: float = Field(description="The estimate.")
    low: float | None = Field(description="Lower end of its 95 % interval; null if not known.")
    high: float | None = Field(description="Upper end of that interval.")


class AdvisedDepthView(BaseModel):
    name: str = Field(description="The name to generate with.")
    short_name: str = Field(description="The same without the model, as @-3.")
    num_removed: int = Field(description="Number of removed blocks.")
    num_blocks: int = Field(description="Number of remaining blocks.")
    speedup: EstimateWithEnds | None = Field(
        description="Time per token, dense over pruned; null if not known."
    )
    is_measured: bool = Field(description="Whether speedup was measured; else it is predicted.")
    ratios: dict[str, EstimateWithEnds] = Field(
        description="Perplexity over that of the dense model, by domain of text."
    )
    parameters: float | None = Field(
        description="Number of parameters over that of the dense model; null if not counted."
    )
    probe_score: float | None = Field(description="Score of the probe; null if not measured.")
    dense_probe_score: float | None = Field(description="The same of the dense model.")
    verdict: Literal["kept", "exceeded", "undecided"] = Field(
        description="Whether it keeps the limits, as far as intervals show."
    )
    failing: list[str] = Field(
        description="What it does not keep: speed, quality, a domain of text, or probe."
    )
    because: str = Field(description="Why it does not; empty if it does.")


class AdviceView(BaseModel):
    """Which depth of a model to take."""

    object: Literal["advice"] = kind("advice")
    model: str = Field(description="The dense model.")
    limits: LimitsView = Field(description="What a depth has to keep.")
    taken: str | None = Field(
        description="The depth to take; null if none is shown to keep the limits."
    )
    nearest: str | None = Field(
        description="The depth that the sentence describes where none is to be taken."
    )
    sentence: str = Field(description="The advice in words.")
    depths: list[AdvisedDepthView] = Field(
        description="Those of the newest removal order and healed ones, the least pruned first."
    )
    missing: list[str] = Field(description="What is not known, with the command that measures it.")
