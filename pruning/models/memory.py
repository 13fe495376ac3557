"""How much memory a device has left, and how much of it an evaluation may use."""

import gc

import psutil
import torch

BATCH_TOKENS = 4096  # through a block at once: enough to keep a device busy


class StateBudgetTooSmall(ValueError):
    """The byte budget for hidden states has no room for a single batch."""


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached  # what torch keeps of what it has freed, it can use again
    return int(psutil.virtual_memory().available)


def give_back() -> None:
    """Let other processes have what is not used here any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
