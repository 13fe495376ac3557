"""The model that a name on the command line means: weights on disk, and the blocks to keep."""

from dataclasses import dataclass, replace
from pathlib import Path

from app.models.aliases import Aliases
from app.models.catalog import Catalog, UnknownModel
from app.models.demo_bar import demo_model_with_bar
from app.models.entry import ModelEntry
from pruning.checkpoints.healed import healed_tensors, heals_every_depth
from pruning.checkpoints.store import MANIFEST, CheckpointStore, repair_of, verify
from pruning.config import Settings
from pruning.evaluation.quality import DomainAtDepth, Quality
from pruning.evaluation.results import ProbeComparison
from pruning.healing.adapter import read_adapter, with_adapter
from pruning.healing.places import CONTROL_FOLDER
from pruning.models.blocks import NO_OWN, Own
from pruning.models.demo_model import NAME
from pruning.models.names import VariantName, raw_name, unhealed_name
from pruning.models.store import ModelStore, NotAModel
from pruning.repair.folding import folded
from pruning.repair.record import Method
from pruning.search.dense_model import DenseModel
from pruning.sleb import Blocks
from pruning.spec.prune import Quantize
from pruning.storage.checkpoints import current_checkpoints


class NotEvaluable(ValueError):
    """The weights of the model are missing, or not in memory as a task needs them."""


@dataclass(frozen=True)
class Subject:
    """A model to evaluate or export. Models with the same ``path`` share their weights."""

    name: str
    path: Path
    keep: Blocks | None  # blocks of the model at ``path``; None for all
    removed_blocks: Blocks  # of the dense parent, in the order they went
    method: Method = Method.NONE  # of the repair
    repaired_by: Path | None = None  # the checkpoint whose repair the weights at ``path`` need
    parent: Path | None = None  # the dense model of a pruned one, if it is here
    predicted_speedup: float | None = None  # with plain weights
    weights: Quantize | None = None  # to which the weights at ``path`` are rounded
    healed_in: Path | None = None  # the checkpoint of a healed model
    quality: Quality | None = None  # as it was measured with plain weights in the dtype of its job
    pinned_name: str | None = None  # in the catalog, which no later job changes
    is_control: bool = False  # the dense model after the training of the checkpoint ``healed_in``

    @property
    def is_dense(self) -> bool:
        return not self.removed_blocks and not self.is_control

    @property
    def is_raw(self) -> bool:
        """Whether it is without any repair or healing."""
        return self.method is Method.NONE and self.healed_in is None

    @property
    def measured(self) -> tuple[DomainAtDepth, ...]:
        """Its quality by domain of text, as far as its job has measured it with these weights."""
        if self.quality is None or self.is_dense or self.weights is not None:
            return ()
        num_removed = len(self.removed_blocks)
        domains = tuple(domain.at_depth(num_removed) for domain in self.quality.domains)
        return tuple(domain.unrepaired() for domain in domains) if self.is_raw else domains

    @property
    def probe(self) -> ProbeComparison | None:
        """The answers that its job has counted, which are those of the model that it published."""
        if self.quality is None or not self.measured:
            return None
        num_removed = len(self.removed_blocks)
        domains = [domain.at_depth(num_removed) for domain in self.quality.domains]
        is_published = num_removed == len(self.quality.losses) - 1 and [*self.measured] == domains
        return self.quality.probe if is_published else None

    @property
    def control(self) -> "Subject | None":
        """The dense model after the training that healed this one; None if there is none.

        It needs the dense model.
        """
        if self.healed_in is None or self.parent is None or self.is_control:
            return None
        if not (self.healed_in / CONTROL_FOLDER).is_dir():
            return None
        return Subject(
            name=f"{self.name}, control",
            path=self.parent,
            keep=None,
            removed_blocks=(),
            weights=self.weights,
            healed_in=self.healed_in,
            is_control=True,
        )

    @property
    def raw(self) -> "Subject | None":
        """The same blocks without repair; None without one, or if the weights contain it."""
        if self.repaired_by is None:
            return None
        name = raw_name(unhealed_name(self.name))
        plain = replace(self, name=name, method=Method.NONE, repaired_by=None, healed_in=None)
        return replace(plain, pinned_name=None)

    def own_tensors(self, dense: DenseModel) -> Own:
        """What its repair changes of ``dense``, the model at ``path``.

        Raises ``CheckpointCorrupt``.
        """
        if self.is_control and self.healed_in is not None:
            return _control_tensors(self.healed_in, dense)
        if self.repaired_by is None or self.keep is None:
            return NO_OWN
        if self.healed_in is not None and heals_every_depth(self.healed_in):
            num_removed = len(self.removed_blocks)
            return healed_tensors(self.healed_in, num_removed, dense.model, dense.read)
        repaired = repair_of(self.repaired_by, len(self.removed_blocks))
        return NO_OWN if repaired is None else folded(dense.model, self.keep, repaired, dense.read)


def _control_tensors(checkpoint: Path, dense: DenseModel) -> Own:
    healing = verify(checkpoint).healing
    assert healing is not None
    tensors = read_adapter(checkpoint / CONTROL_FOLDER)
    return with_adapter(dense.model, healing.settings, tensors, NO_OWN, dense.read)


def subject_of(name: str, settings: Settings) -> Subject:
    """Resolve a name of the catalog, or a directory with a dense model or a checkpoint.

    A published checkpoint is verified against its manifest. Raises ``UnknownModel``, ``NotAModel``,
    ``NotEvaluable`` or ``CheckpointCorrupt``.
    """
    if VariantName.parse(name).model == NAME:
        demo_model_with_bar(settings.models_dir)
    models = ModelStore(settings.models_dir)
    checkpoints = current_checkpoints(settings)
    try:
        entry = Catalog(models, checkpoints, aliases=Aliases(settings.data_dir)).resolve(name)
    except UnknownModel:
        if not Path(name).is_dir():
            raise
        return _directory(Path(name), name, models)
    subject = _entry(entry, models, checkpoints)
    return replace(subject, weights=Quantize.INT8) if entry.is_int8 else subject


def _entry(entry: ModelEntry, models: ModelStore, checkpoints: CheckpointStore) -> Subject:
    if entry.error is not None:
        raise NotAModel(entry.error)
    if entry.is_view:
        path = models.path(entry.base)
        parent = path if entry.is_pruned else None
        subject = Subject(
            entry.name,
            path,
            entry.keep,
            entry.removed_blocks,
            parent=parent,
            predicted_speedup=entry.predicted_speedup,
            quality=entry.order.quality if entry.order else None,
            pinned_name=entry.pinned_name,
        )
        if entry.order is None or entry.view_repair is None:
            return subject
        checkpoint = checkpoints.directory(entry.order.name)
        healed_in = checkpoint if entry.order.is_healed else None
        repaired = replace(subject, method=entry.view_repair.method, repaired_by=checkpoint)
        return replace(repaired, healed_in=healed_in)
    if entry.order is None or not entry.is_whole_checkpoint:
        raise NotEvaluable(
            f"{entry.name!r} needs its dense model {entry.base!r}, which is not in the "
            f"models directory: add {entry.base!r}, or use the whole checkpoint"
        )
    return _directory(checkpoints.directory(entry.order.name), entry.name, models)


def _directory(path: Path, name: str, models: ModelStore) -> Subject:
    if not (path / MANIFEST).is_file():
        return Subject(name, path, None, ())
    manifest = verify(path)
    parent = models.path(manifest.parent) if manifest.parent in models.names() else None
    return Subject(
        name,
        path,
        None,
        manifest.removed_blocks,
        manifest.repaired_by,
        parent=parent,
        predicted_speedup=manifest.predicted_speedup(len(manifest.removed_blocks)),
        quality=manifest.quality,
        healed_in=None if manifest.healing is None else path,
    )
