"""Memory of a device: free bytes, the budget of hidden states, and out-of-memory errors."""

import gc
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from torch import nn

_Item = TypeVar("_Item")
_GROUP = Path("/sys/fs/cgroup")
BATCH_TOKENS = 4096  # per call of a block: enough to keep a device busy
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_ON_GPU = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
_IN_MAIN_MEMORY = "DefaultCPUAllocator"  # torch raises a plain RuntimeError
_ASKED = re.compile(rf"allocate ([\d.]+) ({'|'.join(_UNITS)})")
_FREE = re.compile(rf"of which ([\d.]+) ({'|'.join(_UNITS)}) is free")


class StateBudgetTooSmall(ValueError):
    """The byte budget for hidden states has no room for a single batch."""


def free_bytes(device: torch.device) -> int:
    """Bytes that this process can still allocate on ``device``."""
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached  # torch can use its cache again
    return min(int(psutil.virtual_memory().available), _left_in_group())


def total_bytes(device: torch.device) -> int:
    """All bytes of memory that a process could have on ``device``."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return min(int(psutil.virtual_memory().total), _limit_of_group() or sys.maxsize)


def _limit_of_group(group: Path = _GROUP) -> int | None:
    """The memory limit of this control group, as of a container (cgroup v2); None without one."""
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
    except OSError:  # no cgroup v2, or the root of all groups
        return None
    return int(limit) if limit.isdigit() else None


def _left_in_group(group: Path = _GROUP) -> int:
    """Bytes that the memory limit of this control group leaves, as of a container (cgroup v2).

    Cached files count as free: the kernel drops them. Without a limit, more than any machine has.
    """
    if (limit := _limit_of_group(group)) is None:
        return sys.maxsize
    try:
        used = int((group / "memory.current").read_text(encoding="ascii"))
        kinds = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return sys.maxsize
    cached = sum(int(kind.split()[1]) for kind in kinds if kind.startswith("inactive_file "))
    return max(0, limit - used + cached)


def state_budget(
    device: torch.device,
    num_bytes: int | None,
    *,
    least: int = 0,
    of: str = "",
    num_sharing: int = 1,
    reserved: int = 0,
) -> int:
    """The bytes that hidden states may take: ``num_bytes`` if given.

    The default is half of the free memory of ``device``, divided among ``num_sharing`` processes;
    or less, down to ``least``, where ``reserved`` bytes for something else would not be left.
    Raises ``StateBudgetTooSmall`` below ``least``, the bytes that the states of ``of`` take.
    """
    budget = num_bytes
    if budget is None:
        free = free_bytes(device) // num_sharing
        budget = min(free // 2, max(free - reserved, least))
    if budget < least:
        raise StateBudgetTooSmall(
            f"the state budget of {budget} bytes is too small: hidden states of {of} need "
            f"{least} bytes; raise the budget, free memory, or reduce seqlen"
        )
    return budget


def host_budget(device: torch.device, num_bytes: int | None) -> int:
    """The bytes of hidden states that may be kept in memory of the host for a GPU: half of what is
    free, and none where the budget is a number, which is that of all states."""
    if device.type == "cpu" or num_bytes is not None:
        return 0
    return free_bytes(torch.device("cpu")) // 2


def grouped(
    items: Iterable[_Item], size: Callable[[_Item], int], limit: int
) -> Iterator[list[_Item]]:
    """Yield groups of consecutive items of total size ``limit`` at most, or of a single item."""
    group: list[_Item] = []
    for item in items:
        if group and sum(map(size, group)) + size(item) > limit:
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def leave_device(model: nn.Module) -> None:
    """Move the weights to main memory, and leave that of a GPU to other processes."""
    if next(model.parameters()).device.type != "cpu":
        model.to("cpu")
        release_cache()


def release_cache() -> None:
    """Return the memory of what is no longer used to the device, for other processes.

    A collection stops all threads.
    """
    gc.collect()
    empty_cache()


def empty_cache() -> None:
    """Return the cached memory of the device, for other processes."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out, of the GPU or of the host."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    marks = (*_ON_GPU, _IN_MAIN_MEMORY)
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in marks)


def shortage(error: BaseException) -> str:
    """A message with the bytes that were requested and those that were free, where known.

    Call it while the process still holds its memory: the free bytes may be measured now.
    """
    asked, free = _num_bytes(_ASKED, error), _num_bytes(_FREE, error)
    is_on_gpu = isinstance(error, torch.OutOfMemoryError) or any(m in str(error) for m in _ON_GPU)
    if free is None and (not is_on_gpu or torch.cuda.is_available()):
        free = free_bytes(torch.device("cuda" if is_on_gpu else "cpu"))
    needed = "more than available" if asked is None else _in_words(asked)
    left = "" if free is None else f", but only {_in_words(free)} were free"
    place = "on the GPU" if is_on_gpu else "in main memory"
    return f"out of memory {place}: tried to allocate {needed}{left}"


def _num_bytes(pattern: re.Pattern[str], error: BaseException) -> float | None:
    match = pattern.search(str(error))
    if match is None:
        return None
    return float(match[1]) * 1024.0 ** _UNITS.index(match[2])


def _in_words(num_bytes: float) -> str:
    for unit in _UNITS[:-1]:
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} {_UNITS[-1]}"
