"""One name of the catalogue, and what it stands for."""

from dataclasses import dataclass

from app.models.external import ExternalModel
from app.models.removal_order import RemovalOrder
from pruning.evaluation.probe_scores import ProbeScore
from pruning.evaluation.quality import Quantized
from pruning.models.store import ModelInfo
from pruning.sleb import Blocks


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
