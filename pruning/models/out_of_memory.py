"""Running out of memory: told from other errors, and told to people in bytes."""

import re

import torch

from pruning.models.memory import free_bytes

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
