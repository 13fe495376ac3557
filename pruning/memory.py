"""How much memory a device has left."""

import psutil
import torch


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _total = torch.cuda.mem_get_info(device)
        return free
    return int(psutil.virtual_memory().available)
