"""How much memory a device has left."""

import gc

import psutil
import torch


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
