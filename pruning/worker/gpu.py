"""Memory and energy that the GPUs of this machine use, as the NVIDIA driver reports them.

A worker's parent must not start CUDA, which would take GPU memory away from its children, and it
does not wait for the import of torch.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pynvml
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GpuMemory:
    """Of one device, by all processes together."""

    device: int
    used_bytes: int
    total_bytes: int


def gpu_memory() -> list[GpuMemory]:
    """None where there is no NVIDIA driver, or it does not answer."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_of(device) for device in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _of(device: int) -> GpuMemory:
    found = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(device))
    return GpuMemory(device, int(found.used), int(found.total))


class GpuMemoryCollector(Collector):
    """Absent without a GPU."""

    def describe(self) -> Iterable[Metric]:
        return ()  # or registering would ask the driver

    def collect(self) -> Iterable[Metric]:
        if not (gpus := gpu_memory()):
            return
        used = GaugeMetricFamily(
            "sleb_gpu_memory_used_bytes", "Taken on the device, by anyone.", labels=["device"]
        )
        total = GaugeMetricFamily(
            "sleb_gpu_memory_total_bytes", "What the device has.", labels=["device"]
        )
        for gpu in gpus:
            used.add_metric([str(gpu.device)], gpu.used_bytes)
            total.add_metric([str(gpu.device)], gpu.total_bytes)
        yield used
        yield total


def energy_j(device: "torch.device") -> float | None:
    """Joules since the driver was loaded; None where there is no such device, driver or counter.

    Kept by the driver since Volta, and renewed by it some ten times a second.
    """
    if device.type != "cuda":
        return None
    import torch  # noqa: PLC0415 - see above

    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
