"""Recordings of what a GPU computes, as CUDA graphs: a replay launches all kernels at once.

Launching a small kernel takes longer than running it, so only a replay runs at the pace of the GPU.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

_Result = TypeVar("_Result")


class Recorder:
    """Records steps on one stream, and in one pool of memory.

    A replay runs the kernels of the step on the same addresses, without Python. What it returns is
    valid until the next replay of this recorder. Other threads may use the device meanwhile, as
    those that load weights do.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream()
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, step: Callable[[], _Result]) -> Callable[[], _Result]:
        """Record a step. The function that is returned replays it."""
        with torch.cuda.device(self._device):
            usual = torch.cuda.current_stream()
            self._stream.wait_stream(usual)
            with torch.cuda.stream(self._stream):
                step()  # what libraries set up at a first call of a stream cannot be recorded
            usual.wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                result = step()

        def replay() -> _Result:
            with torch.cuda.device(self._device):
                graph.replay()
            return result

        return replay
