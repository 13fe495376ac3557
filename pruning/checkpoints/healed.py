"""Published checkpoints whose every depth is healed by one adapter: weights and repairs of depths.

The files of a checkpoint have the weights of its deepest model, the adapter, and the repair of each
depth, which the adapter is added to.
"""

from collections.abc import Collection
from pathlib import Path

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
    own_repair,
    read_adapter,
    with_adapter,
)
from pruning.healing.places import ADAPTER_FILE, ADAPTER_FOLDER
from pruning.healing.record import Healing
from pruning.models.blocks import NO_OWN, Own
from pruning.repair.folding import Read, reader_of
from pruning.repair.record import repair_file
from pruning.repair.repair import Repaired


def heals_every_depth(path: Path) -> bool:
    """Whether the checkpoint in this directory is one of these."""
    healing = read_manifest(path).healing
    return healing is not None and healing.is_elastic


def files_of_depth(manifest: Manifest, num_removed: int) -> Collection[str]:
    """The files that a depth is made of, on top of the dense weights."""
    name = repair_file(num_removed)
    return [ADAPTER_FILE, *([name] if name in manifest.files else [])]


def healed_blocks(path: Path, model: PreTrainedModel) -> Own:
    """The tensors that all depths share in place of those of ``model``, the dense one.

    This and the others raise ``CheckpointCorrupt`` if a file differs from the manifest.
    """
    healing, adapter = _read(path)
    return dict(with_adapter(model, healing.settings, adapter, NO_OWN, reader_of(model)))


def healed_repair(path: Path, num_removed: int, model: PreTrainedModel) -> Repaired:
    """What a depth has of its own on ``model``, the dense one with ``healed_blocks``."""
    healing, adapter = _read(path)
    repaired = repair_of(path, num_removed)
    return own_repair(model, healing.settings, adapter, repaired, reader_of(model))


def healed_tensors(path: Path, num_removed: int, model: PreTrainedModel, read: Read) -> Own:
    """The tensors of a depth in place of those of the dense ``model``, which ``read`` reads."""
    healing, adapter = _read(path)
    keep, repaired = read_manifest(path).keep_after(num_removed), repair_of(path, num_removed)
    return depth_tensors(model, keep, healing.settings, adapter, repaired, read)


def _read(path: Path) -> tuple[Healing, Tensors]:
    manifest = read_manifest(path)
    healing, entry = manifest.healing, manifest.files.get(ADAPTER_FILE)
    if healing is None or not healing.is_elastic or entry is None:
        raise CheckpointCorrupt(f"{path}: its manifest has no adapter that heals every depth")
    check_file(path, ADAPTER_FILE, entry)
    try:
        return healing, read_adapter(path / ADAPTER_FOLDER)
    except AdapterUnreadable as error:
        raise CheckpointCorrupt(str(error)) from error
