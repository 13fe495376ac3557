"""The pace and the memory of a healing at published shapes, with random weights and random text."""

from collections.abc import Mapping
from statistics import median
from typing import Any

import torch

from benchmarks.heal_memory import Peak, counted, parts, process_bytes
from pruning.healing.students import alone
from pruning.healing.text import HealingText
from pruning.healing.train import Training
from pruning.models.blocks import NO_OWN, num_blocks
from pruning.models.random_models import random_model
from pruning.spec.heal import Heal

_SHARE_REMOVED = 0.2
_NUM_WINDOWS = 64
_NUM_STEPS = 3


def pace(
    shape: str | Mapping[str, Any], heal: Heal, *, device: str = "auto", seqlen: int = 512
) -> dict[str, Any]:
    """Tokens per second of a training without a fifth of the blocks, and its memory.

    ``shape`` and ``device`` are as for ``random_model``. Weights are in bfloat16.
    """
    before = process_bytes()
    model = random_model(shape, "bfloat16", device=device)
    model.requires_grad_(requires_grad=False)
    total = num_blocks(model)
    keep = tuple(range(total - round(_SHARE_REMOVED * total)))
    students = alone(model, keep, NO_OWN, heal)
    windows = torch.randint(model.config.vocab_size, (_NUM_WINDOWS, seqlen))
    text = HealingText({"random": windows[1:]}, {"random": windows[:1]})
    steps = Training(model, students, text, heal).steps()
    peak = Peak(model.device, before)
    next(steps)  # allocates memory and chooses kernels
    found = median(next(steps).tokens_per_s for _ in range(_NUM_STEPS))
    num_bytes = peak.num_bytes()
    with counted(
        students.adapter.model
    ) as activations:  # which keeps them, so the peak comes first
        next(steps)
    return {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_kept": len(keep),
        "batch_tokens": heal.batch_tokens,
        "tokens_per_s": found,
        "bytes": parts(model, NO_OWN, students.adapter, activations.num_bytes, num_bytes),
    }
