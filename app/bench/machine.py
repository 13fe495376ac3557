"""The machine that a benchmark ran on, as JSON values."""

import platform
from importlib.metadata import version
from pathlib import Path

import psutil
import torch


def machine() -> dict[str, object]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "sleb-serve")},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
