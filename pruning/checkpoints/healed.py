"""Published checkpoints whose every depth is healed by one adapter: weights and repairs of depths.

The files of a checkpoint have the weights of its deepest model, the adapter, and the repair of each
depth, which the adapter is added to.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from pruning.checkpoints.store import (
    CheckpointCorrupt,
    Manifest,
    check_file,
    read_manifest,
    repair_of,
)
from pruning.healing.adapter import (
    AdapterUnreadable,
    Tensors,
    depth_tensors,
    on_blocks,
    own_repair,
    read_adapter,
    with_adapter,
)
from pruning.healing.places import ADAPTER_FILE, ADAPTER_FOLDER
from pruning.healing.record import Healing
from pruning.models.blocks import NO_OWN, Own, num_blocks, view, with_blocks
from pruning.models.store import LoadedModel
from pruning.repair.folding import Read, reader_of
from pruning.repair.record import repair_file
from pruning.repair.repair import Repaired
from pruning.sleb import Blocks


def heals_every_depth(path: Path) -> bool:
    """Whether the checkpoint in this directory is one of these."""
    healing = read_manifest(path).healing
    return healing is not None and healing.is_elastic


def files_of_depth(manifest: Manifest, num_removed: int) -> Collection[str]:
    """The files that a depth is made of, on top of the dense weights."""
    name = repair_file(num_removed)
    return [ADAPTER_FILE, *([name] if name in manifest.files else [])]


@dataclass(frozen=True)
class HealedModel(LoadedModel):
    """The dense model with the blocks that all depths of a checkpoint share."""

    dense: PreTrainedModel

    def parameters(self) -> Iterator[nn.Parameter]:
        """All that it keeps in memory: also the dense blocks, which some depths have."""
        return chain(self.model.parameters(), self.dense.parameters())

    def depth(self, path: Path, num_removed: int) -> tuple[PreTrainedModel, Repaired]:
        """All blocks of the model that a depth is a part of, and what the depth has of its own.

        ``path`` is the checkpoint. Raises ``CheckpointCorrupt`` if a file differs from its
        manifest.
        """
        dense, read = self.dense, reader_of(self.dense)
        healing, adapter = _read(path)
        blocks, repaired = _adapted(path, num_removed), repair_of(path, num_removed)
        part = on_blocks(dense, adapter, blocks)
        own = own_repair(dense, healing.settings, part, repaired, read)
        return with_blocks(dense, self.model, blocks), own


def healed_model(path: Path, dense: LoadedModel) -> HealedModel:
    """Make the blocks that all depths share of those of the dense model.

    Raises ``CheckpointCorrupt`` if a file differs from the manifest.
    """
    healing, adapter = _read(path)
    model = dense.model
    own = dict(with_adapter(model, healing.settings, adapter, NO_OWN, reader_of(model)))
    shared = view(model, range(num_blocks(model)), own)
    return HealedModel(shared, dense.tokenizer, dense.path, model)


def healed_tensors(path: Path, num_removed: int, model: PreTrainedModel, read: Read) -> Own:
    """The tensors of a depth in place of those of the dense ``model``, which ``read`` reads.

    Raises ``CheckpointCorrupt`` if a file differs from the manifest.
    """
    healing, adapter = _read(path)
    keep, repaired = read_manifest(path).keep_after(num_removed), repair_of(path, num_removed)
    part = on_blocks(model, adapter, _adapted(path, num_removed))
    return depth_tensors(model, keep, healing.settings, part, repaired, read)


def _adapted(path: Path, num_removed: int) -> Blocks:
    """The blocks that the adapter is on at a depth. Older records do not say it: all."""
    manifest = read_manifest(path)
    keep = manifest.keep_after(num_removed)
    if manifest.healing is None or not manifest.healing.adapted:
        return keep
    found = manifest.healing.adapted[num_removed - 1 : num_removed]
    if not found or not set(found[0]) <= set(keep):
        raise CheckpointCorrupt(
            f"{path}: the healed blocks for {num_removed} removals do not match the model"
        )
    return found[0]


def _read(path: Path) -> tuple[Healing, Tensors]:
    manifest = read_manifest(path)
    healing, entry = manifest.healing, manifest.files.get(ADAPTER_FILE)
    if healing is None or not healing.is_elastic or entry is None:
        raise CheckpointCorrupt(f"{path}: its manifest has no adapter for every depth")
    check_file(path, ADAPTER_FILE, entry)
    try:
        return healing, read_adapter(path / ADAPTER_FOLDER)
    except AdapterUnreadable as error:
        raise CheckpointCorrupt(str(error)) from error
