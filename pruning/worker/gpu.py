"""Memory and energy of the GPUs of this machine, read from the NVIDIA driver by NVML.

Needs the extra ``gpu``. NVML needs no CUDA context, which would take GPU memory in the parent of a
worker. All figures are of the whole device, for all processes together.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pruning.extras import has_extra

if TYPE_CHECKING:
    import torch

_Read = TypeVar("_Read")


def read_driver(read: Callable[[Any], _Read], otherwise: _Read) -> _Read:
    """What ``read`` returns of the module ``pynvml``, connected.

    ``otherwise`` without the extra ``gpu`` or a working driver, and where the driver refuses.
    """
    if not has_extra("gpu"):
        return otherwise
    import pynvml  # noqa: PLC0415 - an extra

    try:
        pynvml.nvmlInit()
        try:
            return read(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return otherwise


def gpu_memory() -> list[tuple[int, int]]:
    """The used and all bytes of each GPU; empty without a working NVIDIA driver, or the extra."""

    def read(nvml: Any) -> list[tuple[int, int]]:  # noqa: ANN401 - a module
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
        infos = map(nvml.nvmlDeviceGetMemoryInfo, handles)
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

    None without the extra ``gpu`` as well. GPUs since Volta have the counter, which is updated
    about ten times a second.
    """
    if device.type != "cuda":
        return None
    import torch  # noqa: PLC0415 - slow to import

    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"

    def read(nvml: Any) -> float:  # noqa: ANN401 - a module
        handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000

    return read_driver(read, None)
