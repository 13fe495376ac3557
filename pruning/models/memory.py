"""How much memory a device has left, and how much of it an evaluation may use.

Running out of memory: told from other errors, and told to people in bytes.
"""

import gc
import re

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


_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_ON_GPU = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_IN_MAIN_MEMORY = "DefaultCPUAllocator"  # torch has no exception of its own for it
_ASKED = re.compile(rf"allocate ([\d.]+) ({'|'.join(_UNITS)})")
_FREE = re.compile(rf"of which ([\d.]+) ({'|'.join(_UNITS)}) is free")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    marks = (*_ON_GPU, _IN_MAIN_MEMORY)
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)


def shortage(error: BaseException) -> str:
    """How much was asked for and how much there was, as far as the error or the machine tell.

    To be called while what was allocated still is.
    """
    asked, free = _num_bytes(_ASKED, error), _num_bytes(_FREE, error)
    is_on_gpu = isinstance(error, torch.OutOfMemoryError) or any(m in str(error) for m in _ON_GPU)
    if free is None and (not is_on_gpu or torch.cuda.is_available()):
        free = free_bytes(torch.device("cuda" if is_on_gpu else "cpu"))
    needed = "more than there was" if asked is None else _in_words(asked)
    left = "" if free is None else f", and {_in_words(free)} were free"
    place = "on the GPU" if is_on_gpu else "in main memory"
    return f"out of memory {place}: asked for {needed} at once{left}"


def _num_bytes(pattern: re.Pattern[str], error: BaseException) -> float | None:
    found = pattern.search(str(error))
    if found is None:
        return None
    return float(found[1]) * 1024.0 ** _UNITS.index(found[2])


def _in_words(num_bytes: float) -> str:
    for unit in _UNITS[:-1]:
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} {_UNITS[-1]}"
