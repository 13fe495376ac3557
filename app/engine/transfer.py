"""Copies between the memory of the host and that of a device.

A copy from memory that is not pinned, and a copy to the host that is read, wait for all kernels in
front of them. So what a step needs goes up in one copy that does not wait, and its results come
down in one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch


@dataclass(frozen=True)
class Numbers:
    """A list for a device, and the type that it has there."""

    values: Sequence[float]
    dtype: torch.dtype = torch.long


def upload(values: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Integers, or rows of them, on the device."""
    return sent(torch.tensor(values, dtype=torch.long), device)


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device, without a wait."""
    return pinned(tensor, device).to(device, non_blocking=True)


def pinned(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host, which can be copied to the device without a wait."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def upload_all(lists: Mapping[str, Numbers], device: torch.device) -> dict[str, torch.Tensor]:
    """The lists that are not empty on the device, by name, in one copy.

    Whole numbers must be below 2**53.
    """
    lists = {name: of for name, of in lists.items() if of.values}
    if device.type != "cuda" or not lists:
        return {name: torch.tensor(of.values, dtype=of.dtype) for name, of in lists.items()}
    every = torch.tensor([*chain(*(of.values for of in lists.values()))], dtype=torch.float64)
    parts = sent(every, device).split([len(of.values) for of in lists.values()])
    return {name: part.to(of.dtype) for (name, of), part in zip(lists.items(), parts, strict=True)}


class Download:
    """Tensors on their way to the host, in one copy, whose end no later kernel delays."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._tensors = tensors
        self._arrived: torch.cuda.Event | None = None
        device = tensors[0].device
        if device.type == "cuda":
            every = torch.cat([tensor.detach().flatten().double() for tensor in tensors])
            self._on_host = torch.empty(every.shape, dtype=every.dtype, pin_memory=True)
            self._on_host.copy_(every, non_blocking=True)
            with torch.cuda.device(device):
                self._arrived = torch.cuda.Event()
                self._arrived.record()

    def read(self) -> list[list[Any]]:
        """What ``tolist`` of each says, once it has arrived."""
        if self._arrived is None:
            return [tensor.tolist() for tensor in self._tensors]
        self._arrived.synchronize()
        parts = self._on_host.split([tensor.numel() for tensor in self._tensors])
        return [
            part.to(tensor.dtype).view(tensor.shape).tolist()
            for part, tensor in zip(parts, self._tensors, strict=True)
        ]
