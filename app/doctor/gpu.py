"""The doctor's checks of the GPU: what the driver reports, what torch can use, what is set."""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.version import Version

from app.doctor.finding import Finding, fine, note, size, wrong
from pruning.models.nvidia_driver import driver_version, old_driver
from pruning.plural import counted
from pruning.worker.gpu import read_driver, visible_handles

_CHECK = "device"
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container, cgroup v2


@dataclass(frozen=True)
class Gpus:
    """GPUs and CUDA versions such as "12.8": the driver's newest, and that of torch."""

    total_bytes: tuple[int, ...] = ()  # of each GPU that CUDA_VISIBLE_DEVICES shows
    driver_cuda: str | None = None
    torch_cuda: str | None = None
    num_usable: int = 0  # with torch
    num_installed: int = 0
    driver: str | None = None
    torch_rocm: str | None = None


def gpus() -> Gpus:
    """The GPUs of this machine; none without a driver."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the finding says what torch would warn about
        num_usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    of_torch = Gpus(
        torch_cuda=torch.version.cuda,
        num_usable=num_usable,
        driver=driver_version(),
        torch_rocm=torch.version.hip,
    )

    def read(nvml: Any) -> Gpus:  # noqa: ANN401 - a module
        infos = map(nvml.nvmlDeviceGetMemoryInfo, visible_handles(nvml))
        newest = int(nvml.nvmlSystemGetCudaDriverVersion())
        return replace(
            of_torch,
            total_bytes=tuple(int(info.total) for info in infos),
            driver_cuda=f"{newest // 1000}.{newest % 1000 // 10}",
            num_installed=int(nvml.nvmlDeviceGetCount()),
        )

    return read_driver(read, of_torch)


def device(wanted: str, cards: Gpus) -> Finding:
    """Check that ``wanted``, a value of ``SLEB_DEVICE``, can be used."""
    kind, _, index = wanted.partition(":")
    if kind == "cpu":
        return fine(_CHECK, "CPU, as set by SLEB_DEVICE")
    if not cards.num_usable and (old := old_driver(cards.driver, cards.torch_cuda)):
        return wrong(_CHECK, old.said, f"{old.advice}; or set SLEB_DEVICE=cpu")
    if not cards.num_usable and cards.total_bytes:
        return _unusable(cards)
    if kind == "cuda" and int(index or 0) >= cards.num_usable:
        said = f"SLEB_DEVICE={wanted}, but torch sees only {cards.num_usable} GPUs"
        return wrong(_CHECK, said, "set SLEB_DEVICE to an available GPU, or to auto")
    return _used(cards)


def _used(cards: Gpus) -> Finding:
    if not cards.num_usable and cards.num_installed:
        said = f"CPU: CUDA_VISIBLE_DEVICES hides all of {counted(cards.num_installed, 'GPU')}"
        return note(_CHECK, said, "unset it, or list indices or UUIDs from `nvidia-smi -L`")
    if not cards.num_usable:
        return fine(_CHECK, "CPU: torch sees no GPU")
    usable = f"{cards.num_usable} of {max(len(cards.total_bytes), cards.num_usable)} GPUs"
    if cards.torch_rocm is not None:
        said = f"{usable} are usable, with torch for ROCm {cards.torch_rocm}"
        return note(_CHECK, said, "ROCm is untested: compare results with SLEB_DEVICE=cpu")
    return fine(_CHECK, f"{usable} are usable")


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
        said = f"{seen}, but torch was built without CUDA"
        return wrong(_CHECK, said, "install a CUDA build of torch, or set SLEB_DEVICE=cpu")
    if Version(cards.driver_cuda or "0").major < Version(cards.torch_cuda).major:
        said = f"{seen} and CUDA {cards.driver_cuda}, but torch was built for {cards.torch_cuda}"
        advice = f"update the driver, or install torch for CUDA {cards.driver_cuda}"
        return wrong(_CHECK, said, advice)
    said = f"{seen}, but torch cannot use any of them"
    advice = "check CUDA_VISIBLE_DEVICES and nvidia-smi, or set SLEB_DEVICE=cpu"
    return wrong(_CHECK, said, advice)
