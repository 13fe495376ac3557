"""Response bodies about the checkpoints of a job, and the prefixes of its removal order."""

from typing import Literal

from pydantic import BaseModel, Field

from app.api.schemas.fields import kind
from app.api.schemas.generate import DomainView, MeasuredSpeedupView, RepairView


class CheckpointFileView(BaseModel):
    name: str = Field(description="Path within the checkpoint.")
    num_bytes: int = Field(description="Size of the file.")
    sha256: str = Field(description="Digest of the file.")
    url: str = Field(description="Where to download it.")


class PrefixView(BaseModel):
    """The dense model without the first blocks of a removal order."""

    model: str = Field(description="The name to generate with.")
    num_removed: int = Field(description="Number of removed blocks.")
    removed_block: int = Field(description="The block removed last.")
    loss: float = Field(description="On the calibration text, in nats per token, unrepaired.")
    perplexity: float | None = Field(
        description="On the text of evaluated_on; null until evaluated."
    )
    domains: list[DomainView] = Field(description="Quality by domain; empty until evaluated.")
    predicted_speedup: float | None = Field(
        description="Time of a decode step of one sequence, dense over pruned, by the times of the "
        "blocks on the machine of the job. Null until published."
    )
    measured_speedup: MeasuredSpeedupView | None = Field(
        description="Of any variant with as many blocks; null if none was measured."
    )
    repair: RepairView | None = Field(description="Null until published, or without repair.")


class CheckpointView(BaseModel):
    """The published checkpoint of a job. Before that: prefixes, no files."""

    id: str = Field(description="Name of the checkpoint.")
    object: Literal["prune_job.checkpoint"] = kind("prune_job.checkpoint")
    is_published: bool = Field(description="Whether its files are complete.")
    created_at: float | None = Field(description="When it was published.")
    num_blocks: int = Field(description="Number of remaining blocks.")
    removed_blocks: list[int] = Field(description="In the order of their removal.")
    num_parameters: int | None = Field(description="Null until published.")
    evaluated_on: str | None = Field(description="The text of perplexities, with its windows.")
    prefixes: list[PrefixView] = Field(description="Those that can be served now.")
    files: list[CheckpointFileView] = Field(description="Empty until published.")


class CheckpointList(BaseModel):
    object: Literal["list"] = kind("list")
    data: list[CheckpointView] = Field(description="The checkpoint of the job, if it has one.")
