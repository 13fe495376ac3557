"""The simulated device in this process: its memory, its log, its graphs, and ``torch.cuda``."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.simcuda.build import library
from tests.support.simcuda.log import Log
from tests.support.simcuda.torch_cuda import stand_ins

NUM_DEVICES = 2
_GIB = 2**30

_Observer = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int64, ctypes.c_int
)
_NUMBERS = ("sim_allocated", "sim_peak", "sim_capacity", "sim_num_kernels", "sim_end_capture")


@cache
def _loaded(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    for name in _NUMBERS:
        getattr(found, name).restype = ctypes.c_int64
    found.sim_replay.restype = ctypes.c_char_p
    found.sim_replay.argtypes = found.sim_drop_graph.argtypes = [ctypes.c_int64]
    found.sim_set_capacity.argtypes = [ctypes.c_int, ctypes.c_int64]
    return found


@dataclass
class SimulatedCuda:
    """The device while it is present. ``library`` is its C++ part."""

    library: Any
    log: Log = field(default_factory=Log)
    num_captures: int = 0
    num_replays: int = 0

    def set_memory(self, num_bytes: int) -> None:
        """Give each card that much memory."""
        for index in range(NUM_DEVICES):
            self.library.sim_set_capacity(index, num_bytes)

    def total_bytes(self, index: int = 0) -> int:
        return int(self.library.sim_capacity(index))

    def allocated_bytes(self, index: int = 0) -> int:
        return int(self.library.sim_allocated(index))

    def peak_bytes(self, index: int = 0) -> int:
        return int(self.library.sim_peak(index))

    def reset_peak(self, index: int = 0) -> None:
        self.library.sim_reset_peak(index)

    @property
    def num_kernels(self) -> int:
        """Kernels launched by this process so far, those of replays aside."""
        return int(self.library.sim_num_kernels())

    @property
    def current(self) -> int:
        return int(self.library.sim_device())

    @current.setter
    def current(self, index: int) -> None:
        self.library.sim_set_device(index)

    @property
    def is_capturing(self) -> bool:
        return bool(self.library.sim_is_capturing())

    def wait(self, op: str) -> None:
        """The host waits for the device, which it must not while it captures."""
        self.log.add("wait", op, 0, is_capturing=self.is_capturing)
        if self.is_capturing:
            raise RuntimeError(
                f"CUDA error: operation not permitted when stream is capturing: {op}"
            )

    def begin_capture(self) -> None:
        self.num_captures += 1
        self.library.sim_begin_capture()

    def end_capture(self) -> int:
        return int(self.library.sim_end_capture())

    def replay(self, graph: int) -> None:
        self.num_replays += 1
        failed = self.library.sim_replay(graph)
        if failed is not None:
            raise RuntimeError(failed.decode())

    def drop(self, graph: int) -> None:
        self.library.sim_drop_graph(graph)

    @contextmanager
    def dry(self) -> Iterator[None]:
        """Within the context, tensors of the device have shapes and addresses but no memory, and
        nothing is computed: what is read from the device is one."""
        self.library.sim_set_dry(1)
        try:
            yield
        finally:
            self.library.sim_set_dry(0)


@contextmanager
def simulated_cuda(memory_bytes: int = 80 * _GIB) -> Iterator[SimulatedCuda]:
    """Within the context, torch has two CUDA devices. Must not be nested."""
    device = SimulatedCuda(_loaded(library()))

    def observe(kind: bytes, op: bytes, num_bytes: int, is_capturing: int) -> int:
        name = kind.decode()
        device.log.add(name, op.decode(), num_bytes, is_capturing=bool(is_capturing))
        return int(bool(is_capturing) and name == "wait")

    kept = _Observer(observe)  # as long as it may be called
    device.set_memory(memory_bytes)
    for index in range(NUM_DEVICES):
        device.reset_peak(index)
    device.library.sim_set_observer(kept)
    device.library.sim_set_present(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in stand_ins(device).items():
                patch.setattr(torch.cuda, name, value)
            patch.setattr(torch.version, "cuda", "12.8")
            yield device
    finally:
        device.library.sim_set_present(0)
        device.library.sim_set_observer(_Observer())
        device.current = 0
