"""What a report says of the machine and the command that measured it, as JSON values."""

import platform
import shlex
import sys
from importlib.metadata import version

import psutil
import torch

from app.engine.autotuning import cpu_name


def facts_of(dtype: str) -> dict[str, object]:
    command = shlex.join(["sleb", *sys.argv[1:]])
    return {"dtype": dtype, "command": command, "machine": machine()}


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
