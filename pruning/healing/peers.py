"""Processes that train one adapter together: each on its share of every step's windows.

All of them make the same steps, as sums of gradients are equal everywhere. Only the first one
watches, saves and publishes. torchrun or ``accelerate launch`` starts them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


class PeerLost(RuntimeError):
    """Another process of the training has ended."""


@dataclass(frozen=True)
class Peers:
    """All processes of a training, of which this one has the number ``rank``."""

    rank: int = 0
    size: int = 1
    group: Any = None  # of torch, whose kinds have no type of their own; None for one process

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows that are this process's to compute with; there may be none."""
        return rows[self.rank :: self.size]

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the sum over all processes into each of these tensors, which are on one device."""
        if self.group is None:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with _loss_of_peers():
            self.group.allreduce([flat]).wait()
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def take_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Put the values that the first process has into each of these tensors."""
        if not self.is_first:
            for tensor in tensors:
                tensor.zero_()
        self.add_up(tensors)

    def as_first(self, value: float) -> float:
        """The value that the first process has given."""
        sent = torch.tensor([value], dtype=torch.float64)
        self.take_first([sent])
        return float(sent)


ALONE = Peers()


@contextmanager
def launched(device: str) -> Iterator[tuple[Peers, str]]:
    """The processes that torchrun has started with this one, and the device for this one.

    Without torchrun it is alone, on ``device``. On GPUs, each process takes one of its machine.
    """
    if not distributed.is_torchelastic_launched():
        yield ALONE, device
        return
    is_on_gpu = device in ("auto", "cuda") and torch.cuda.is_available()
    if is_on_gpu:
        device = f"cuda:{distributed.get_node_local_rank()}"
        torch.cuda.set_device(device)
    with _loss_of_peers():
        distributed.init_process_group("cpu:gloo,cuda:nccl" if is_on_gpu else "gloo")
    try:
        rank, size = distributed.get_rank(), distributed.get_world_size()
        yield Peers(rank, size, distributed.group.WORLD if size > 1 else None), device
    finally:
        distributed.destroy_process_group()


@contextmanager
def _loss_of_peers() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(
            f"another process of this healing ended or cannot be reached ({error}): see its "
            "output, then start all processes again; they resume from the last saved step"
        ) from error
