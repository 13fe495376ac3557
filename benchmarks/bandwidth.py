"""The bandwidth of a device's memory, and the time in which it can read all weights of a model.

A decode step of one sequence reads every weight once, so it cannot be faster than that.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

_NUM_BYTES = 2**28  # more than any cache holds
_NUM_REPEATS = 5


@dataclass(frozen=True)
class Floor:
    """The least time of a decode step, from the weights and the bandwidth alone."""

    weight_bytes: int
    bytes_per_s: float

    @property
    def seconds(self) -> float:
        return self.weight_bytes / self.bytes_per_s


def weights_floor(model: PreTrainedModel) -> Floor:
    """The floor of a decode step of one sequence, measured on the model's device now."""
    return Floor(step_bytes(model), read_bytes_per_s(model.device))


def step_bytes(model: PreTrainedModel) -> int:
    """Bytes of weights that a decode step reads: all but embeddings that are not the head too."""
    every = sum(parameter.nbytes for parameter in model.parameters())
    embeddings = model.get_input_embeddings().get_parameter("weight")
    head = model.get_output_embeddings()
    is_tied = head is not None and head.get_parameter("weight") is embeddings
    return every if is_tied else every - embeddings.nbytes


def read_bytes_per_s(device: torch.device) -> float:
    """The bandwidth of reading, as the best of a few ways and repeats."""
    numbers = torch.ones(_NUM_BYTES // 4, device=device)
    ways: list[Callable[[], object]] = [numbers.sum, numbers.amax, lambda: numbers.dot(numbers)]
    return numbers.nbytes / min(_seconds(way, device) for way in ways)


def _seconds(way: Callable[[], object], device: torch.device) -> float:
    """The shortest time of a few runs, after one of warm-up."""
    times = []
    for _ in range(1 + _NUM_REPEATS):
        began_s = time.perf_counter()
        way()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began_s)
    return min(times[1:])
