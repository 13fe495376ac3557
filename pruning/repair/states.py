"""Hidden states in memory up to a budget, and beyond that in a temporary file."""

import io
import tempfile
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

_Key = TypeVar("_Key", bound=Hashable)


class SpillFailed(RuntimeError):
    """The temporary file cannot take the hidden states that are beyond the budget."""


@dataclass(frozen=True)
class _Slot:
    """A tensor in the file."""

    offset: int
    num_bytes: int
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class States(Generic[_Key]):
    """Tensors by key, of which at most ``budget`` bytes are in memory.

    The file is in the folder for temporary files, has no name, and goes with this object.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._held: dict[_Key, torch.Tensor] = {}
        self._spilled: dict[_Key, _Slot] = {}
        self._free: dict[int, list[int]] = {}  # offsets of unused slots by their bytes
        self._file: io.FileIO | None = None
        self.file_bytes = 0
        self.held_bytes = 0
        self.peak_bytes = 0  # of what was in memory at once

    def __contains__(self, key: _Key) -> bool:
        return key in self._held or key in self._spilled

    def put(self, key: _Key, tensor: torch.Tensor) -> None:
        """Raises ``SpillFailed`` if there is no room in memory and none on the disk."""
        assert key not in self
        if self.held_bytes + tensor.nbytes > self._budget:
            self._spilled[key] = self._written(tensor)
            return
        self._held[key] = tensor
        self.held_bytes += tensor.nbytes
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def get(self, key: _Key) -> torch.Tensor:
        """The tensor, which must not be changed."""
        if key in self._held:
            return self._held[key]
        slot = self._spilled[key]
        raw = torch.empty(slot.num_bytes, dtype=torch.uint8)
        assert self._file is not None
        self._file.seek(slot.offset)
        self._file.readinto(raw.numpy().data)
        return raw.view(slot.dtype).view(slot.shape).to(slot.device)

    def drop(self, key: _Key) -> None:
        if key in self._held:
            self.held_bytes -= self._held.pop(key).nbytes
        else:
            slot = self._spilled.pop(key)
            self._free.setdefault(slot.num_bytes, []).append(slot.offset)

    def close(self) -> None:
        self._held, self._spilled, self.held_bytes = {}, {}, 0
        if self._file is not None:
            self._file.close()

    def _written(self, tensor: torch.Tensor) -> _Slot:
        free = self._free.get(tensor.nbytes)
        offset = free.pop() if free else self.file_bytes
        self.file_bytes = max(self.file_bytes, offset + tensor.nbytes)
        raw = tensor.contiguous().cpu().view(-1).view(torch.uint8).numpy().data
        try:
            if self._file is None:
                # without a buffer, so that a full disk is found here and not when it is closed
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - ``close`` closes it
            self._file.seek(offset)
            is_whole = self._file.write(raw) == tensor.nbytes
        except OSError as error:
            raise _spill_failed(self.file_bytes, error.strerror) from error
        if not is_whole:
            raise _spill_failed(self.file_bytes, "the disk is full")
        return _Slot(offset, tensor.nbytes, tensor.shape, tensor.dtype, tensor.device)


def _spill_failed(num_bytes: int, reason: str | None) -> SpillFailed:
    return SpillFailed(
        f"{num_bytes} bytes of hidden states fit neither into memory nor into a file in "
        f"{tempfile.gettempdir()}: {reason}. Free space there, set TMPDIR to a larger "
        "disk, raise SLEB_STATE_BUDGET, or reduce the number of samples"
    )
