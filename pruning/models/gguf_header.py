"""The header of a GGUF file, walked before any library reads it.

A reader makes a list of as many values as a count says. So counts and lengths are compared with
what is left of the file, and the sizes of the model with what a model can have.
"""

import mmap
import re
import struct
from pathlib import Path

from pruning.models.config_bounds import MAX_BLOCKS, MAX_NUMBER
from pruning.plural import counted

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
# Formats of numbers by their GGUF type.
_NUMBERS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_MIN_FIELD_BYTES = 8 + 4 + 1  # of a key's length, a type and a value
_MIN_TENSOR_BYTES = 8 + 4 + 4 + 8  # of a name's length, the number of dimensions, type and place
_MAX_DIMENSIONS = 8
_MAX_DEPTH = 2  # of arrays in arrays
_MAX_VALUES = 2**23  # in all arrays: vocabularies and merges of the largest models have a fifth
_MAX_BY_KEY = (
    (re.compile(r".*\.block_count"), MAX_BLOCKS),
    (re.compile(r".*\.(head_count|head_count_kv)"), 2**16),
    (re.compile(r".*\.expert(_used|_shared)?_count"), 2**12),
    (re.compile(r".*\.(vocab_size|embedding_length|feed_forward_length)"), 2**24),
    (re.compile(r".*_length|.*_count|.*_token_id"), MAX_NUMBER),
)


def check_gguf_header(file: Path) -> None:
    """Raise ``ValueError`` or ``OSError`` for a header that the file is too short for."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _Header(data).check()


class _Header:
    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._at = 0
        self._order = "<"
        self._num_values = 0

    def check(self) -> None:
        if self._data[:4] != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        self._at = 4
        if self._number("I") & 0xFFFF == 0:  # written by a machine of the other byte order
            self._order = ">"
        num_tensors, num_fields = self._number("Q"), self._number("Q")
        self._check_room(num_fields * _MIN_FIELD_BYTES + num_tensors * _MIN_TENSOR_BYTES, "header")
        for _ in range(num_fields):
            key = self._text()
            self._value(key, self._number("I"))
        for _ in range(num_tensors):
            self._tensor()

    def _tensor(self) -> None:
        name = self._text()
        if (num_dimensions := self._number("I")) > _MAX_DIMENSIONS:
            raise ValueError(f"the tensor {name!r} has {counted(num_dimensions, 'dimension')}")
        self._skip(num_dimensions * 8 + 4 + 8, name)

    def _value(self, key: str, kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            self._skip(self._number("Q"), key)
        elif kind == _ARRAY and depth < _MAX_DEPTH:
            self._array(key, depth)
        elif kind in _NUMBERS:
            self._check_bound(key, self._number(_NUMBERS[kind]))
        else:
            raise ValueError(f"{key} has values of the unknown type {kind}")

    def _array(self, key: str, depth: int) -> None:
        kind, count = self._number("I"), self._number("Q")
        smallest = struct.calcsize(_NUMBERS.get(kind, "Q"))
        self._check_room(count * smallest, key)
        self._num_values += count
        if self._num_values > _MAX_VALUES:
            raise ValueError(f"{key}: more than {_MAX_VALUES} values in arrays")
        if kind in _NUMBERS and count > MAX_BLOCKS:  # of tokens, and not of blocks
            self._skip(count * smallest, key)
            return
        for _ in range(count):
            self._value(key, kind, depth + 1)

    def _check_bound(self, key: str, value: float) -> None:
        for pattern, most in _MAX_BY_KEY:
            if pattern.fullmatch(key) and value > most:
                raise ValueError(f"{key}={value}, expected {most} at most")

    def _text(self) -> str:
        num_bytes = self._number("Q")
        begin = self._at
        self._skip(num_bytes, "a name")
        return self._data[begin : self._at].decode()

    def _number(self, kind: str) -> int:
        """0 for a floating-point number, of which there are no bounds."""
        size = struct.calcsize(kind)
        self._check_room(size, "header")
        (value,) = struct.unpack_from(self._order + kind, self._data, self._at)
        self._at += size
        return value if isinstance(value, int) else 0

    def _skip(self, num_bytes: int, what: str) -> None:
        self._check_room(num_bytes, what)
        self._at += num_bytes

    def _check_room(self, num_bytes: int, what: str) -> None:
        if num_bytes > (left := len(self._data) - self._at):
            raise ValueError(
                f"{what[:128]}: {num_bytes} bytes are announced, and {left} are left in the file"
            )
