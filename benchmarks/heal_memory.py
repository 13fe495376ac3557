"""Memory of a training, by what it is for, beside the peak that was measured.

On a GPU the peak is torch's. Elsewhere it is that of the resident memory of this process, less what
the process took before the model was loaded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from pruning.healing.adapter import Adapter
from pruning.models.blocks import Own
from pruning.models.store import load

_RESET_PEAK = "5"  # proc_pid_clear_refs(5): the peak of the resident memory starts anew


@dataclass
class Activations:
    """Bytes that a backward pass needs."""

    num_bytes: int = 0


@contextmanager
def counted(model: nn.Module) -> Iterator[Activations]:
    """Count what autograd keeps inside, without the weights. A storage counts once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no address is used twice
    found = Activations()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.data_ptr() not in kept:
            kept[storage.data_ptr()] = storage
            found.num_bytes += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def process_bytes() -> int:
    """What this process takes in main memory."""
    return int(psutil.Process().memory_info().rss)


def bytes_without(model: Path) -> int:
    """What this process takes without this model, but with all code that a training needs."""
    import peft  # noqa: F401, PLC0415 - takes a second

    load(model, device="meta")
    return process_bytes()


class Peak:
    """The peak of memory since it was made, less ``before``, the process without a model."""

    def __init__(self, device: torch.device, before: int) -> None:
        self._device = device
        self._before = before
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK)

    def num_bytes(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        status = Path("/proc/self/status").read_text().splitlines()
        [line] = [line for line in status if line.startswith("VmHWM:")]
        return 1024 * int(line.split()[1]) - self._before


def parts(
    dense: PreTrainedModel, own: Own, adapter: Adapter, activations: int, peak: int
) -> dict[str, float]:
    """The report: ``ratio`` is the peak over the sum of all parts.

    A training needs a gradient for each number of the adapter, two moments, and a copy of it at the
    best step.
    """
    size = adapter.num_bytes
    found: dict[str, float] = {
        "weights": sum(parameter.nbytes for parameter in dense.parameters()),
        "repair": sum(tensor.nbytes for tensor in own.values()),
        "adapter": size,
        "gradients": size,
        "optimizer": 2 * size,
        "best_step": size,
        "activations": activations,
    }
    return {**found, "peak": peak, "ratio": peak / sum(found.values())}
