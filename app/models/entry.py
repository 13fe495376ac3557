"""One name of the catalogue, and what it stands for.

In which order the blocks of a dense model go, by a published checkpoint or by the record of a
job that has published none.
"""

from dataclasses import dataclass

from app.models.external import ExternalModel
from pruning.checkpoints.store import Manifest
from pruning.evaluation.probe_scores import ProbeScore
from pruning.evaluation.quality import Quality, Quantized
from pruning.jobs.job import Job
from pruning.models.names import VariantName
from pruning.models.store import ModelInfo
from pruning.removal import kept
from pruning.sleb import Blocks


@dataclass(frozen=True)
class RemovalOrder:
    """Every prefix of ``removed_blocks`` is a variant."""

    name: str  # of the checkpoint that it is published as, or will be
    parent: str
    num_blocks: int  # of the dense parent
    removed_blocks: Blocks
    quality: Quality
    dtype: str
    created_at: float  # seconds since the epoch
    is_published: bool
    num_parameters: int | None = None  # of the whole order
    dense_num_parameters: int | None = None
    parent_fingerprint: str | None = None  # None: any parent of that depth will do

    @property
    def job_id(self) -> str | None:
        """The job that found the order; None for a checkpoint that is not named as a job's."""
        return VariantName.of_checkpoint(self.name).job

    @property
    def depth(self) -> int:
        return len(self.removed_blocks)

    def keep_after(self, num_removed: int) -> Blocks:
        """The blocks alive after the first ``num_removed`` removals."""
        return kept(self.num_blocks, self.removed_blocks[:num_removed])


def of_checkpoint(manifest: Manifest) -> RemovalOrder:
    return RemovalOrder(
        name=manifest.name,
        parent=manifest.parent,
        num_blocks=manifest.num_blocks,
        removed_blocks=manifest.removed_blocks,
        quality=manifest.quality,
        dtype=manifest.dtype,
        created_at=manifest.created_at,
        is_published=True,
        num_parameters=manifest.num_parameters,
        dense_num_parameters=manifest.dense_num_parameters,
        parent_fingerprint=manifest.parent_fingerprint,
    )


def of_job(job: Job, parent: ModelInfo) -> RemovalOrder | None:
    """What the job has found so far; None if that is nothing, or does not fit ``parent``."""
    if job.dense_loss is None or max(job.removed_blocks, default=-1) >= parent.num_blocks:
        return None
    return RemovalOrder(
        name=job.checkpoint_name,
        parent=job.model,
        num_blocks=parent.num_blocks,
        removed_blocks=job.removed_blocks,
        quality=Quality((job.dense_loss, *job.losses)),
        dtype=parent.dtype,
        created_at=job.created_at,
        is_published=False,
    )


@dataclass(frozen=True)
class Entry:
    """One name and what it stands for: a dense model, or a prefix of a removal order."""

    name: str
    base: str  # the dense model
    info: ModelInfo | None  # of the dense model; None where only a checkpoint of it is here
    order: RemovalOrder | None  # that it belongs to, for a dense model its current one
    num_removed: int = 0
    error: str | None = None  # why it cannot be served
    external: ExternalModel | None = None  # what another server generates for

    @property
    def removed_blocks(self) -> Blocks:
        if self.external is not None:
            return self.external.removed_blocks
        return self.order.removed_blocks[: self.num_removed] if self.order else ()

    @property
    def keep(self) -> Blocks | None:
        """Alive blocks; None for all of them."""
        return self.order.keep_after(self.num_removed) if self.order and self.num_removed else None

    @property
    def num_blocks(self) -> int:
        """Of an external model those that were declared or are known here, else 0."""
        if self.external is not None and (self.external.num_blocks or self.order is None):
            return self.external.num_blocks or 0
        of_dense = self.order.num_blocks if self.order else self.info.num_blocks if self.info else 0
        return of_dense - self.num_removed

    @property
    def num_parameters(self) -> int | None:
        """Exact: all blocks of the supported families are of one size. None if no job counted."""
        order = self.order
        if order is None or order.num_parameters is None or order.dense_num_parameters is None:
            return None
        per_block = (order.dense_num_parameters - order.num_parameters) // order.depth
        return order.dense_num_parameters - per_block * self.num_removed

    @property
    def dtype(self) -> str | None:
        """Of the weights, by torch's name for it."""
        return self.info.dtype if self.info else self.order.dtype if self.order else None

    @property
    def perplexity(self) -> float | None:
        """On the held-out windows of the job behind the order."""
        curve = self.order.quality.perplexities if self.order else ()
        return curve[self.num_removed] if curve else None

    @property
    def probe(self) -> ProbeScore | None:
        """Of the dense model and of the whole order alone, if the job's gate asked for it."""
        both = self.order.quality.probe if self.order else None
        if both is None or self.order is None:
            return None
        return {0: both.dense, self.order.depth: both.pruned}.get(self.num_removed)

    @property
    def zero_shot(self) -> float | None:
        """The mean of the paper's tasks, 0 to 1, of the same two, if the job asked for it."""
        both = self.order.quality.zero_shot if self.order else None
        if both is None or self.order is None:
            return None
        return {0: both.dense_mean, self.order.depth: both.pruned_mean}.get(self.num_removed)

    @property
    def quantized(self) -> Quantized | None:
        """Of the whole order alone, if its job asked for it."""
        is_whole = self.order is not None and self.num_removed == self.order.depth
        return self.order.quality.quantized if self.order and is_whole else None

    @property
    def is_view(self) -> bool:
        """Whether the dense weights are here, and those that the order was found on."""
        blocks = self.info.num_blocks if self.info else 0
        return blocks > 0 and (self.order is None or self.order.num_blocks == blocks)

    @property
    def is_published(self) -> bool:
        """False for what only the record of a job tells."""
        return self.order is None or self.order.is_published

    @property
    def is_whole_checkpoint(self) -> bool:
        order = self.order
        return order is not None and order.is_published and self.num_removed == order.depth


def external_entry(model: ExternalModel, order: RemovalOrder | None = None) -> Entry:
    """``order`` is one that begins with its removed blocks."""
    base = model.parent or model.name
    return Entry(model.name, base, None, order, model.num_removed, external=model)
