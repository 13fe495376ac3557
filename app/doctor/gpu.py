"""The doctor's checks of the GPU: what the driver reports, what torch can use, what is set."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.version import Version

from app.doctor.finding import Finding, fine, size, wrong
from pruning.worker.gpu import read_driver

_CHECK = "device"
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container, cgroup v2


@dataclass(frozen=True)
class Gpus:
    """GPUs and CUDA versions such as "12.8": the driver's newest, and that of torch."""

    total_bytes: tuple[int, ...] = ()  # of each GPU of the driver
    driver_cuda: str | None = None
    torch_cuda: str | None = None
    num_usable: int = 0  # with torch


def gpus() -> Gpus:
    """The GPUs of this machine; none without a driver."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the finding says what torch would warn about
        num_usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    torch_cuda = torch.version.cuda

    def read(nvml: Any) -> Gpus:  # noqa: ANN401 - a module
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        total = tuple(int(nvml.nvmlDeviceGetMemoryInfo(handle).total) for handle in handles)
        newest = int(nvml.nvmlSystemGetCudaDriverVersion())
        return Gpus(total, f"{newest // 1000}.{newest % 1000 // 10}", torch_cuda, num_usable)

    return read_driver(read, Gpus(torch_cuda=torch_cuda, num_usable=num_usable))


def device(wanted: str, cards: Gpus) -> Finding:
    """Check that ``wanted``, a value of ``SLEB_DEVICE``, can be used."""
    kind, _, index = wanted.partition(":")
    if kind == "cpu":
        return fine(_CHECK, "the CPU, as set by SLEB_DEVICE")
    if cards.total_bytes and not cards.num_usable:
        return _unusable(cards)
    if kind == "cuda" and int(index or 0) >= cards.num_usable:
        said = f"SLEB_DEVICE is {wanted}, but torch can use {cards.num_usable} GPUs"
        return wrong(_CHECK, said, "set it to an existing GPU, or to auto")
    if not cards.num_usable:
        return fine(_CHECK, "the CPU: torch can use no GPU")
    return fine(_CHECK, f"{cards.num_usable} of {len(cards.total_bytes)} GPUs can be used")


def room_bytes(wanted: str, cards: Gpus) -> int:
    """The total memory of the device that ``wanted`` selects, in bytes."""
    if wanted != "cpu" and cards.num_usable and cards.total_bytes:
        index = int(wanted.partition(":")[2] or 0)
        return cards.total_bytes[min(index, len(cards.total_bytes) - 1)]
    host = int(psutil.virtual_memory().total)
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else ""
    return min(host, int(limit)) if limit.isdigit() else host


def _unusable(cards: Gpus) -> Finding:
    sizes = ", ".join(map(size, cards.total_bytes))
    seen = f"the driver reports {len(cards.total_bytes)} GPUs ({sizes})"
    if cards.torch_cuda is None:
        said = f"{seen}, but this torch was built without CUDA"
        return wrong(_CHECK, said, "install torch with CUDA, or set SLEB_DEVICE=cpu")
    if Version(cards.driver_cuda or "0") < Version(cards.torch_cuda):
        said = f"{seen} and CUDA {cards.driver_cuda}, but torch was built for {cards.torch_cuda}"
        advice = f"update the driver, or install a torch for CUDA {cards.driver_cuda}"
        return wrong(_CHECK, said, advice)
    said = f"{seen}, but torch can use none"
    advice = "check CUDA_VISIBLE_DEVICES and nvidia-smi, or set SLEB_DEVICE=cpu"
    return wrong(_CHECK, said, advice)
