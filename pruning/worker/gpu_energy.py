"""What a GPU has consumed, asked of the driver: of the whole device, whoever uses it."""

import pynvml
import torch


def energy_j(device: torch.device) -> float | None:
    """Joules since the driver was loaded; None where there is no such device, driver or counter.

    Kept by the driver since Volta, and renewed by it some ten times a second.
    """
    if device.type != "cuda":
        return None
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
