"""The pace and the memory of a healing at published shapes, with random weights and random text.

On a GPU the peak is torch's. Elsewhere it is that of the resident memory of this process, less what
the process took before the model was made.
"""

from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from benchmarks.gpu.plan import GpuPlan
from pruning.data.calibration import RepairWindows
from pruning.data.windows import Windows
from pruning.healing.activations import Kept
from pruning.healing.adapter import Adapter
from pruning.healing.students import alone
from pruning.healing.train import Training
from pruning.models.blocks import NO_OWN, num_blocks
from pruning.models.random_models import random_model

_SHARE_REMOVED = 0.2
_NUM_WINDOWS = 64
_NUM_STEPS = 3
_RESET_PEAK = "5"  # proc_pid_clear_refs(5): the peak of the resident memory starts anew


def heal(plan: GpuPlan) -> dict[str, Any]:
    """Tokens per second of a training without a fifth of the blocks, and its memory."""
    before = int(psutil.Process().memory_info().rss)
    model = random_model(plan.shape, "bfloat16", device=plan.device)
    model.requires_grad_(requires_grad=False)
    total = num_blocks(model)
    keep = tuple(range(total - round(_SHARE_REMOVED * total)))
    students = alone(model, keep, NO_OWN, plan.heal)
    windows = torch.randint(model.config.vocab_size, (_NUM_WINDOWS, plan.heal_seqlen))
    train, held_out = (Windows(part, "random") for part in (windows[1:], windows[:1]))
    text = RepairWindows({"random": train}, {"random": held_out})
    steps = Training(model, students, text, plan.heal).steps()
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    else:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    next(steps)  # allocates memory and chooses kernels
    tokens_per_s = median(next(steps).tokens_per_s for _ in range(_NUM_STEPS))
    peak = _peak_bytes(model.device, before)
    activations = Kept(students.adapter.model)
    with saved_tensors_hooks(activations.add, lambda tensor: tensor):
        next(steps)  # whose activations are held, so the peak comes first
    return {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "num_kept": len(keep),
        "batch_tokens": plan.heal.batch_tokens,
        "tokens_per_s": tokens_per_s,
        "bytes": _bytes(model, students.adapter, activations.num_bytes, peak),
    }


def _peak_bytes(device: torch.device, before: int) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in status if line.startswith("VmHWM:")]
    return 1024 * int(line.split()[1]) - before


def _bytes(
    model: PreTrainedModel, adapter: Adapter, activations: int, peak: int
) -> dict[str, float]:
    """What the memory is for; ``ratio`` is the peak over the sum of all parts.

    A training needs a gradient for each number of the adapter, two moments, and a copy of it at the
    best step.
    """
    size = adapter.num_bytes
    sizes: dict[str, float] = {
        "weights": sum(parameter.nbytes for parameter in model.parameters()),
        "adapter": size,
        "gradients": size,
        "optimizer": 2 * size,
        "best_step": size,
        "activations": activations,
    }
    return {**sizes, "peak": peak, "ratio": peak / sum(sizes.values())}
