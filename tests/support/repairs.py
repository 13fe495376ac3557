"""Repairs of tiny models, made on random windows."""

import torch
from transformers import PreTrainedModel

from pruning.repair.repair import (
    Method,
    Repaired,
    RepairText,
    ResidentModel,
    repair_depths,
)
from pruning.sleb import Blocks
from tests.support.tiny import VOCAB_SIZE


def random_text(num_windows: int = 6, seqlen: int = 12, seed: int = 0) -> RepairText:
    """Windows of two domains."""
    generator = torch.Generator().manual_seed(seed)

    def windows(number: int) -> dict[str, torch.Tensor]:
        shape = (number, seqlen)
        domains = ("prose", "code")
        return {d: torch.randint(3, VOCAB_SIZE, shape, generator=generator) for d in domains}

    return RepairText(windows(num_windows), windows(num_windows // 2))


def repaired_by(method: Method, model: PreTrainedModel, keep: Blocks) -> Repaired:
    dense = ResidentModel(model)
    [depth] = repair_depths(dense, [keep], random_text(), batch_tokens=24, methods=[method])
    return depth.tried[method]
