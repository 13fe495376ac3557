"""The machine that a benchmark ran on, as JSON values."""

import platform
from importlib.metadata import version

import psutil
import torch

from app.engine.autotuning import cpu_name


def machine() -> dict[str, object]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
        "load_average": [round(load, 2) for load in psutil.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "sleb-serve")},
    }
