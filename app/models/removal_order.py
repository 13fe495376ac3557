"""In which order the blocks of a dense model go, by a published checkpoint or by the record of a
job that has published none.
"""

from dataclasses import dataclass

from pruning.checkpoints.store import Manifest
from pruning.evaluation.quality import Quality
from pruning.jobs.job import Job
from pruning.models.store import ModelInfo
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
    def depth(self) -> int:
        return len(self.removed_blocks)

    def keep_after(self, num_removed: int) -> Blocks:
        """The blocks alive after the first ``num_removed`` removals."""
        gone = set(self.removed_blocks[:num_removed])
        return tuple(block for block in range(self.num_blocks) if block not in gone)


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
