"""Memory and energy of the visible GPUs, read from the NVIDIA driver by NVML.

NVML needs no CUDA context, which would take GPU memory in the parent of a
worker. All figures are of the whole device, for all processes together.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeVar

import pynvml
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pruning.config import visible_gpus

if TYPE_CHECKING:
    import torch

_Read = TypeVar("_Read")


def read_driver(read: Callable[[Any], _Read], otherwise: _Read) -> _Read:
    """What ``read`` returns of the module ``pynvml``, connected.

    ``otherwise`` without a working driver, and where the driver refuses.
    """
    try:
        pynvml.nvmlInit()
        try:
            return read(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return otherwise


def visible_handles(nvml: Any) -> list[Any]:  # noqa: ANN401 - a module, and what it defines
    """Those of the GPUs that CUDA shows this process, in the order of their indices there."""
    handles = [nvml.nvmlDeviceGetHandleByIndex(each) for each in range(nvml.nvmlDeviceGetCount())]
    visible = visible_gpus()
    if visible is None:
        return handles
    found = (_handle(nvml, name, handles) for name in visible)
    return list(takewhile(lambda handle: handle is not None, found))  # CUDA stops there too


def _handle(nvml: Any, name: str, handles: Sequence[Any]) -> Any | None:  # noqa: ANN401 - as above
    """Of a number, of the UUID of a GPU or the beginning of it, or of that of a MIG device."""
    if name.startswith("MIG-"):
        with suppress(nvml.NVMLError):
            return nvml.nvmlDeviceGetHandleByUUID(name)
        return None
    if name.isdecimal():
        return handles[int(name)] if int(name) < len(handles) else None
    alike = [each for each in handles if name and nvml.nvmlDeviceGetUUID(each).startswith(name)]
    return alike[0] if len(alike) == 1 else None


def gpu_memory() -> list[tuple[int, int]]:
    """The used and all bytes of each visible GPU; empty without a working NVIDIA driver."""

    def read(nvml: Any) -> list[tuple[int, int]]:  # noqa: ANN401 - a module
        infos = map(nvml.nvmlDeviceGetMemoryInfo, visible_handles(nvml))
        return [(int(info.used), int(info.total)) for info in infos]

    return read_driver(read, [])


class GpuMemoryCollector(Collector):
    """Exports the memory of the GPUs; no metric without a GPU."""

    def collect(self) -> Iterable[Metric]:
        if not (gpus := gpu_memory()):
            return
        used = GaugeMetricFamily(
            "sleb_gpu_memory_used_bytes", "GPU memory in use, by all processes.", labels=["device"]
        )
        total = GaugeMetricFamily(
            "sleb_gpu_memory_total_bytes", "GPU memory in total.", labels=["device"]
        )
        for device, (used_bytes, total_bytes) in enumerate(gpus):
            used.add_metric([str(device)], used_bytes)
            total.add_metric([str(device)], total_bytes)
        yield used
        yield total


def energy_j(device: "torch.device") -> float | None:
    """Joules since the driver was loaded; None without a GPU, a driver or an energy counter.

    GPUs since Volta have the counter, which is updated about ten times a second.
    """
    if device.type != "cuda":
        return None
    import torch  # noqa: PLC0415 - slow to import

    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"

    def read(nvml: Any) -> float:  # noqa: ANN401 - a module
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000

    return read_driver(read, None)
