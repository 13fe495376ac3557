"""Repairs of tiny models, made on random windows, and checkpoints that have them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from pruning.checkpoints.store import MANIFEST, FileEntry, Manifest, file_entry, read_manifest
from pruning.data.calibration import RepairWindows
from pruning.data.windows import Windows
from pruning.models.architectures import architecture
from pruning.models.blocks import num_blocks, view
from pruning.models.streaming import ResidentModel
from pruning.repair.folding import folded
from pruning.repair.order import record_of, refusal
from pruning.repair.plan import cuts_of
from pruning.repair.record import Method
from pruning.repair.repair import Repaired, repair_depths
from pruning.repair.stored import write_repair
from pruning.sleb import Blocks
from tests.support.tiny import VOCAB_SIZE


def windows_of(
    train: Mapping[str, torch.Tensor], selection: Mapping[str, torch.Tensor]
) -> RepairWindows:
    """Of token ids by domain."""
    return RepairWindows(
        {domain: Windows(token_ids, domain) for domain, token_ids in train.items()},
        {domain: Windows(token_ids, domain) for domain, token_ids in selection.items()},
    )


def token_ids_of(part: Mapping[str, Windows]) -> dict[str, torch.Tensor]:
    return {domain: windows.token_ids for domain, windows in part.items()}


def random_text(num_windows: int = 24, seqlen: int = 12, seed: int = 0) -> RepairWindows:
    """Windows of two domains."""
    generator = torch.Generator().manual_seed(seed)

    def windows(number: int) -> dict[str, torch.Tensor]:
        shape = (number, seqlen)
        domains = ("prose", "code")
        return {d: torch.randint(3, VOCAB_SIZE, shape, generator=generator) for d in domains}

    return windows_of(windows(num_windows), windows(num_windows // 2))


_WITH_SCALES = {"use_post_norm": True, "_remove_final_layer_norm": False}  # what configs must say


def methods_of(config: PreTrainedConfig) -> tuple[Method, ...]:
    """The repairs that a checkpoint of such a model may have: earlier releases made scales."""
    if refusal(config) is not None:
        return ()
    has_scales = all(getattr(config, key, value) == value for key, value in _WITH_SCALES.items())
    if has_scales and architecture(config).writes.scaled:
        return (Method.SCALE, Method.RIDGE)
    return (Method.RIDGE,)


def repaired_by(method: Method, model: PreTrainedModel, keep: Blocks) -> Repaired:
    if method is Method.SCALE:
        cuts = cuts_of(keep, num_blocks(model))
        return Repaired(method, {}, scales={cut: 1.25 + 0.5 * at for at, cut in enumerate(cuts)})
    [depth] = repair_depths(ResidentModel(model), [keep], random_text(), batch_tokens=512)
    return depth.tried[method]


def repair_checkpoint(path: Path, model: PreTrainedModel, methods: Sequence[Method]) -> Manifest:
    """Repair a published checkpoint of ``model`` by a method for each depth, 1, 2 ...

    It is then as a job with these repairs would have published it.
    """
    manifest = read_manifest(path)
    keeps = [manifest.keep_after(depth) for depth in range(1, len(methods) + 1)]
    found = repair_depths(ResidentModel(model), keeps, random_text(), batch_tokens=512)
    repairs = []
    for num_removed, (method, depth) in enumerate(zip(methods, found, strict=True), start=1):
        repaired = depth.tried.get(method) or repaired_by(method, model, depth.keep)
        write_repair(path, num_removed, repaired)
        repairs.append(record_of(num_removed, depth, repaired))
    own = folded(model, manifest.keep, repaired)
    view(model, manifest.keep, own).save_pretrained(path)
    manifest = replace(manifest, repair=tuple(repairs), files=entries_of(path))
    (path / MANIFEST).write_text(manifest.to_json())
    return manifest


def entries_of(path: Path) -> dict[str, FileEntry]:
    files = [file for file in path.rglob("*") if file.is_file() and file.name != MANIFEST]
    return {str(file.relative_to(path)): file_entry(file) for file in files}
