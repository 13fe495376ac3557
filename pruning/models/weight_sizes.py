"""How large the weights of a model on disk are, from the headers of its files alone. No torch."""

import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from pruning.models.store import NotAModel

_MAX_HEADER_BYTES = 100_000_000  # the limit of the format
_OF_BLOCK = re.compile(r"(?:^|\.)(?:layers|h)\.\d+\.")  # what blocks are called in all families


@dataclass(frozen=True)
class WeightSizes:
    """Numbers of parameters, as stored: of two tied ones a file may hold one or both."""

    num_in_blocks: int
    num_elsewhere: int

    def num_parameters(self, num_blocks: int, num_removed: int = 0) -> int:
        """Of a model of ``num_blocks`` equal blocks without so many of them."""
        kept = num_blocks - num_removed
        return self.num_elsewhere + self.num_in_blocks * kept // num_blocks


def weight_sizes(path: Path) -> WeightSizes:
    """Of the safetensors in the directory ``path``. Raises ``NotAModel`` if one is none."""
    in_blocks = elsewhere = 0
    for file in path.glob("*.safetensors"):
        for name, num_parameters in _tensors(file):
            if _OF_BLOCK.search(name):
                in_blocks += num_parameters
            else:
                elsewhere += num_parameters
    return WeightSizes(in_blocks, elsewhere)


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin. Raises ``NotAModel``."""
    with _told_as_not_a_model(file), file.open("rb") as opened:
        (num_bytes,) = struct.unpack("<Q", opened.read(8))
        if num_bytes > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {num_bytes} bytes")
        header: dict[str, Any] = json.loads(opened.read(num_bytes))
        return header, 8 + num_bytes


def _tensors(file: Path) -> Iterator[tuple[str, int]]:
    header, _ = read_header(file)
    with _told_as_not_a_model(file):
        for name, tensor in header.items():
            if name != "__metadata__":
                yield name, prod(tensor["shape"])


@contextmanager
def _told_as_not_a_model(file: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise NotAModel(
            f"{file} may not be read ({error.strerror}): give it to the user that runs the service"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise NotAModel(
            f"{file} is not a safetensors file ({error}): put the model there again"
        ) from error
