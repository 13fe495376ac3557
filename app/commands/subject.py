"""The model that a name on the command line means: weights on disk, and the blocks to keep."""

from dataclasses import dataclass, replace
from pathlib import Path

from app.models.aliases import Aliases
from app.models.catalog import Catalog, UnknownModel
from app.models.entry import ModelEntry
from pruning.checkpoints.store import MANIFEST, CheckpointStore, repair_of, verify
from pruning.config import Settings
from pruning.models.blocks import NO_OWN, Own
from pruning.models.demo_model import NAME, ensure_demo_model
from pruning.models.names import VariantName, raw_name
from pruning.models.store import ModelStore, NotAModel
from pruning.repair.folding import folded
from pruning.repair.record import Method
from pruning.search.dense_model import DenseModel
from pruning.sleb import Blocks
from pruning.spec.prune import Quantize


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
    weights: Quantize | None = None  # to which the weights at ``path`` are rounded

    @property
    def raw(self) -> "Subject | None":
        """The same blocks without repair; None without one, or if the weights contain it."""
        if self.repaired_by is None:
            return None
        return replace(self, name=raw_name(self.name), method=Method.NONE, repaired_by=None)

    def own_tensors(self, dense: DenseModel) -> Own:
        """What its repair changes of ``dense``, the model at ``path``.

        Raises ``CheckpointCorrupt``.
        """
        if self.repaired_by is None or self.keep is None:
            return NO_OWN
        repaired = repair_of(self.repaired_by, len(self.removed_blocks))
        return NO_OWN if repaired is None else folded(dense.model, self.keep, repaired, dense.read)


def subject_of(name: str, settings: Settings) -> Subject:
    """Resolve a name of the catalog, or a directory with a dense model or a checkpoint.

    A published checkpoint is verified against its manifest. Raises ``UnknownModel``, ``NotAModel``,
    ``NotEvaluable`` or ``CheckpointCorrupt``.
    """
    if VariantName.parse(name).model == NAME:
        ensure_demo_model(settings.models_dir)
    models = ModelStore(settings.models_dir)
    checkpoints = CheckpointStore(settings.checkpoints_dir)
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
        subject = Subject(entry.name, path, entry.keep, entry.removed_blocks, parent=parent)
        if entry.order is None or entry.view_repair is None:
            return subject
        checkpoint = checkpoints.path(entry.order.name)
        return replace(subject, method=entry.view_repair.method, repaired_by=checkpoint)
    if entry.order is None or not entry.is_whole_checkpoint:
        raise NotEvaluable(
            f"{entry.name!r} needs {entry.base!r}, which is not in the models directory: add that "
            "model, or use the whole checkpoint"
        )
    return _directory(checkpoints.path(entry.order.name), entry.name, models)


def _directory(path: Path, name: str, models: ModelStore) -> Subject:
    if not (path / MANIFEST).is_file():
        return Subject(name, path, None, ())
    manifest = verify(path)
    parent = models.path(manifest.parent) if manifest.parent in models.names() else None
    return Subject(name, path, None, manifest.removed_blocks, manifest.repaired_by, parent=parent)
