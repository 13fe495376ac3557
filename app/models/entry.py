"""Model entries: one name of the catalog each, and the removal order that the name belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from app.models.external import ExternalModel
from pruning.checkpoints.store import Manifest
from pruning.evaluation.paired_tasks import PairedTask
from pruning.evaluation.quality import DomainQuality, Measured, Quality, Quantized
from pruning.evaluation.results import ProbeScore
from pruning.healing.places import ADAPTER_FILE
from pruning.jobs.job import Job
from pruning.models.architectures import engine_refusal
from pruning.models.block_times import BlockTimes
from pruning.models.names import VariantName, int8_name, raw_name
from pruning.models.store import ModelInfo
from pruning.removal import kept
from pruning.repair.record import Method, repair_file
from pruning.sleb import Blocks
from pruning.spec.prune import Quantize

ModelKind = Literal["dense", "pruned"]


@dataclass(frozen=True)
class StoredRepair:
    """The repair of one prefix of a removal order, as the manifest of its checkpoint records it.

    Of a healed checkpoint, it is what repair and healing have changed. Where one adapter heals all
    depths, it is what a depth does not share with the others.
    """

    method: Method
    num_bytes: int  # of the tensors that it does not share with the dense model
    sha256: str  # of its files: equal for equal tensors
    is_healed: bool = False

    @property
    def label(self) -> str:
        """For a table."""
        return f"{self.method}, healed" if self.is_healed else self.method.value

    @classmethod
    def by_depth(cls, manifest: Manifest) -> Mapping[int, Self]:
        """By the number of removed blocks. Prefixes that are better without repair are missing."""
        repaired = {
            depth.num_removed: cls(
                depth.method, depth.num_bytes, _sha256(manifest, repair_file(depth.num_removed))
            )
            for depth in manifest.repair or ()
            if depth.method is not Method.NONE
        }
        if (healing := manifest.healing) is None:
            return repaired
        adapter, last = _sha256(manifest, ADAPTER_FILE), len(manifest.removed_blocks)
        if not healing.is_elastic:
            return {last: cls(healing.method, healing.num_bytes, adapter, is_healed=True)}
        unrepaired = cls(Method.NONE, 0, "")
        depths = {depth: repaired.get(depth, unrepaired) for depth in range(1, last + 1)}
        return {
            depth: replace(repair, sha256=f"{adapter} {repair.sha256}", is_healed=True)
            for depth, repair in depths.items()
        }


def _sha256(manifest: Manifest, name: str) -> str:
    """Of a file; empty for one that is missing, with which nothing can be loaded."""
    entry = manifest.files.get(name)
    return entry.sha256 if entry else ""


@dataclass(frozen=True)
class VariantKey:
    """What a variant of some dense weights computes. Names with equal keys share one variant."""

    keep: Blocks | None = None  # None: all blocks of the weights
    repair: str | None = None  # the sha256 of its file


@dataclass(frozen=True)
class RemovalOrder:
    """The blocks of a dense model in the order of their removal. Every prefix is a variant."""

    name: str  # of its checkpoint, published or not
    parent: str  # the dense model
    num_blocks: int  # of the dense model
    removed_blocks: Blocks
    quality: Quality
    dtype: str
    created_at: float  # seconds since the epoch
    is_published: bool
    num_parameters: int | None = None  # after all removals
    dense_num_parameters: int | None = None
    parent_fingerprint: str | None = None  # None matches any model with that many blocks
    block_times: BlockTimes | None = None  # of the dense model; None in old manifests
    repairs: Mapping[int, StoredRepair] = field(default_factory=dict)  # by depth, where it has one
    is_healed: bool = False  # then the whole order can be served, and prefixes if it is elastic
    shared_bytes: int | None = None  # of what all healed depths share; None unless all are healed
    tenant: str | None = None  # whom it belongs to; None: all see it

    @classmethod
    def of_checkpoint(cls, manifest: Manifest) -> Self:
        """The order that a published checkpoint records."""
        healing = manifest.healing
        return cls(
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
            block_times=manifest.block_times,
            repairs=StoredRepair.by_depth(manifest),
            is_healed=healing is not None,
            shared_bytes=healing.num_bytes if healing and healing.is_elastic else None,
            tenant=manifest.tenant,
        )

    @classmethod
    def of_job(cls, job: Job, parent: ModelInfo) -> Self | None:
        """The removals that a job has found so far; None if there are none for ``parent``."""
        if job.dense_loss is None or max(job.removed_blocks, default=-1) >= parent.num_blocks:
            return None
        return cls(
            name=job.checkpoint_name,
            parent=job.model,
            num_blocks=parent.num_blocks,
            removed_blocks=job.removed_blocks,
            quality=Quality((job.dense_loss, *job.losses)),
            dtype=parent.dtype,
            created_at=job.created_at,
            is_published=False,
            tenant=job.owner,
        )

    @property
    def is_elastic(self) -> bool:
        """Whether every prefix is healed."""
        return self.shared_bytes is not None

    @property
    def job_id(self) -> str | None:
        """The job that found the order; None if the checkpoint's name has no job."""
        return VariantName.of_checkpoint(self.name).job

    @property
    def depth(self) -> int:
        return len(self.removed_blocks)

    def keep_after(self, num_removed: int) -> Blocks:
        """The blocks that remain after the first ``num_removed`` removals."""
        return kept(self.num_blocks, self.removed_blocks[:num_removed])


@dataclass(frozen=True)
class ModelEntry:
    """A name and the model that it means: a dense model, or a prefix of a removal order."""

    name: str
    base: str  # the dense model
    info: ModelInfo | None  # of the dense model; None if only a checkpoint of it is here
    order: RemovalOrder | None  # for a dense model, its newest
    num_removed: int = 0
    error: str | None = None  # the reason why it cannot be served
    external: ExternalModel | None = None  # set if another server generates for it
    is_raw: bool = False  # unrepaired, even if the job repaired it
    is_int8: bool = False  # with int8 weights, made of those of the same name without +int8
    is_foreign: bool = False  # of a family that only vLLM may serve: ``error`` is the own engine's

    @classmethod
    def of_model(
        cls,
        name: str,
        base: str,
        info: ModelInfo | None,
        order: RemovalOrder | None,
        num_removed: int = 0,
    ) -> Self:
        """A model that is here: for vLLM, if the engine does not serve its family."""
        error = None if info is None else engine_refusal(info.model_type)
        is_foreign = error is not None
        return cls(name, base, info, order, num_removed, error=error, is_foreign=is_foreign)

    @classmethod
    def of_external(cls, model: ExternalModel, order: RemovalOrder | None = None) -> Self:
        """``order`` begins with the removed blocks of ``model``."""
        base = model.parent or model.name
        return cls(model.name, base, None, order, model.num_removed, external=model)

    @property
    def kind(self) -> ModelKind:
        is_broken_checkpoint = self.error is not None and self.name != self.base
        return "pruned" if self.is_pruned or is_broken_checkpoint else "dense"

    @property
    def is_pruned(self) -> bool:
        return self.num_removed > 0

    @property
    def parent(self) -> str | None:
        """The dense model that a pruned one was made of; None for a dense model."""
        return self.base if self.is_pruned else None

    @property
    def removed_blocks(self) -> Blocks:
        if self.external is not None:
            return self.external.removed_blocks
        return self.order.removed_blocks[: self.num_removed] if self.order else ()

    @property
    def keep(self) -> Blocks | None:
        """The remaining blocks; None for all of them."""
        return self.order.keep_after(self.num_removed) if self.order and self.is_pruned else None

    @property
    def repair(self) -> StoredRepair | None:
        """None if it is served unrepaired, or by another server."""
        return None if self.is_raw or self.external is not None else self._stored_repair

    @property
    def raw(self) -> "ModelEntry":
        """The same blocks without repair."""
        return replace(self, name=raw_name(self.name), is_raw=True)

    @property
    def int8(self) -> "ModelEntry":
        """The same model with int8 weights."""
        return replace(self, name=int8_name(self.name), is_int8=True)

    @property
    def plain_weights_name(self) -> str:
        """The name of the weights that it runs on, or that its int8 weights are made of."""
        if self.order is None or (self.is_view and not self.shares_healed_blocks):
            return self.base
        return self.order.name

    @property
    def shares_healed_blocks(self) -> bool:
        """Whether it runs on a copy of the blocks that all healed depths of its order share."""
        is_elastic = self.order is not None and self.order.is_elastic
        return is_elastic and self.is_view and self.is_pruned and self.repair is not None

    @property
    def weights_name(self) -> str:
        """The name of the weights in memory that it runs on."""
        name = self.plain_weights_name
        return int8_name(name) if self.is_int8 else name

    @property
    def pinned_name(self) -> str:
        """A name of the same model that no later job changes."""
        if self.order is None or not self.is_pruned or self.external is not None:
            return self.name
        is_whole = self.num_removed == self.order.depth
        name = self.order.name if is_whole else f"{self.order.name}-{self.num_removed}"
        name = raw_name(name) if self.is_raw else name
        return int8_name(name) if self.is_int8 else name

    @property
    def view_repair(self) -> StoredRepair | None:
        """The repair that is read beside the dense weights; a checkpoint's own contain it."""
        return self.repair if self.is_view else None

    @property
    def key(self) -> VariantKey:
        """Which variant of its weights it is."""
        repair = self.view_repair
        return VariantKey(self.keep if self.is_view else None, repair.sha256 if repair else None)

    @property
    def num_blocks(self) -> int:
        """The number of remaining blocks; 0 for an external model that does not declare it."""
        if self.external is not None and (self.external.num_blocks or self.order is None):
            return self.external.num_blocks or 0
        of_dense = self.order.num_blocks if self.order else self.info.num_blocks if self.info else 0
        return of_dense - self.num_removed

    @property
    def num_parameters(self) -> int | None:
        """Exact, as all blocks of a supported model have one size. None if no job counted them."""
        order = self.order
        if order is None or order.num_parameters is None or order.dense_num_parameters is None:
            return None
        per_block = (order.dense_num_parameters - order.num_parameters) // order.depth
        return order.dense_num_parameters - per_block * self.num_removed

    @property
    def predicted_speedup(self) -> float | None:
        """Of decoding one sequence, on the machine where the order was found."""
        if self.order is None or self.order.block_times is None or not self.is_pruned:
            return None
        if self.is_int8:  # the times are those of plain weights
            return None
        return self.order.block_times.speedup(self.order.num_blocks, self.num_removed)

    @property
    def dtype(self) -> str | None:
        """The torch name of the type of the weights; of those outside of blocks, if it is int8."""
        return self.info.dtype if self.info else self.order.dtype if self.order else None

    @property
    def perplexity(self) -> float | None:
        """On the held-out windows of the job that found the order, repaired or raw as named."""
        if self.order is None:
            return None
        if self.is_int8:
            measured = self.quantized
            is_same = measured is not None and measured.weights == Quantize.INT8.value
            return measured.perplexity if measured and is_same else None
        quality = self.order.quality
        curve = quality.raw_perplexities if self._lacks_repair else quality.perplexities
        return curve[self.num_removed] if curve else None

    @property
    def evaluated_on(self) -> str | None:
        """The text of ``perplexity``, with its windows."""
        return self.order.quality.evaluated_on or None if self.order else None

    @property
    def domains(self) -> tuple[DomainQuality, ...]:
        """The quality of all prefixes of the order, on each domain; see ``measured_on``.

        No domain was measured with int8 weights.
        """
        return self.order.quality.domains if self.order and not self.is_int8 else ()

    def measured_on(self, domain: DomainQuality) -> Measured:
        """The quality of this prefix, repaired or raw as the name says."""
        of_depth = domain.raw_after if self.is_raw else domain.served_after
        return of_depth(self.num_removed)

    def control_on(self, domain: DomainQuality) -> Measured | None:
        """The dense model after the training that healed this one; None for any other."""
        is_healed = domain.healed_after(self.num_removed) is not None
        return domain.control if is_healed and not self.is_raw else None

    @property
    def probe(self) -> ProbeScore | None:
        """Measured for the dense model and the full depth only, if the quality gate needs it."""
        both = self._measured.probe if self._measured and not self.is_int8 else None
        if both is None or self.order is None:
            return None
        return {0: both.dense, self.order.depth: both.pruned}.get(self.num_removed)

    @property
    def tasks(self) -> tuple[PairedTask, ...]:
        """What its job has asked, of the full depth only, on request."""
        is_asked = self.order is not None and self.num_removed == self.order.depth
        return self._measured.tasks if self._measured and is_asked and not self.is_int8 else ()

    @property
    def quantized(self) -> Quantized | None:
        """Measured for the full depth only, on request."""
        is_whole = self.order is not None and self.num_removed == self.order.depth
        return self._measured.quantized if self._measured and is_whole else None

    @property
    def is_view(self) -> bool:
        """Whether it can run on dense weights that are here and that its order was found on."""
        blocks = self.info.num_blocks if self.info else 0
        return blocks > 0 and (self.order is None or self.order.num_blocks == blocks)

    @property
    def is_published(self) -> bool:
        """False for a prefix that only a job record has."""
        return self.order is None or self.order.is_published

    @property
    def is_whole_checkpoint(self) -> bool:
        """Whether the weights of its checkpoint are this model."""
        order = self.order
        is_whole = order is not None and order.is_published and self.num_removed == order.depth
        return is_whole and not self._lacks_repair

    @property
    def _stored_repair(self) -> StoredRepair | None:
        return self.order.repairs.get(self.num_removed) if self.order else None

    @property
    def _lacks_repair(self) -> bool:
        return self.is_raw and self._stored_repair is not None

    @property
    def _measured(self) -> Quality | None:
        """Of the models as they are served by default, which this one may not be."""
        return self.order.quality if self.order and not self._lacks_repair else None
