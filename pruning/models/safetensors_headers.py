"""The headers of safetensors files: sizes, and a fingerprint of a model. Imports no torch."""

import hashlib
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
_BLOCK_NAME = re.compile(r"(?:^|\.)(?:layers|h)\.\d+\.")  # names of blocks in all families
_SAMPLE_BYTES = 1024  # of each tensor in the fingerprint
_IGNORED_KEYS = ("_name_or_path", "transformers_version")  # config keys that differ between copies


@dataclass(frozen=True)
class WeightSizes:
    """Numbers of stored parameters. Of two tied parameters, one or both may be stored."""

    num_in_blocks: int
    num_elsewhere: int
    num_refit: int = 0  # of those in blocks, in the matrices that a repair may fit anew

    def num_parameters(self, num_blocks: int, num_removed: int = 0) -> int:
        """The parameters of a model of ``num_blocks`` equal blocks without ``num_removed``."""
        kept = num_blocks - num_removed
        return self.num_elsewhere + self.num_in_blocks * kept // num_blocks


def weight_sizes(path: Path, refit: str | None = None) -> WeightSizes:
    """Count the parameters in the headers of all files in ``path``. Raises ``NotAModel``.

    ``refit`` is the layer of a block that a repair may fit anew.
    """
    in_blocks = elsewhere = in_refit = 0
    for file in path.glob("*.safetensors"):
        for name, num_parameters in _tensors(file):
            if _BLOCK_NAME.search(name):
                in_blocks += num_parameters
                is_refit = refit is not None and name.endswith(f".{refit}.weight")
                in_refit += num_parameters if is_refit else 0
            else:
                elsewhere += num_parameters
    return WeightSizes(in_blocks, elsewhere, in_refit)


def read_header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the offset of its tensors. Raises ``NotAModel``."""
    with _errors_as_not_a_model(file), file.open("rb") as opened:
        (num_bytes,) = struct.unpack("<Q", opened.read(8))
        if num_bytes > _MAX_HEADER_BYTES:
            raise ValueError(f"a header of {num_bytes} bytes")
        header: dict[str, Any] = json.loads(opened.read(num_bytes))
        return header, 8 + num_bytes


def fingerprint(path: Path) -> str:
    """A SHA-256 over the config, headers and sizes of all files, and a sample of every tensor.

    It differs between training runs, as these change every tensor, but may miss a single edited
    number. Raises ``OSError``, ``ValueError`` or ``NotAModel``.
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    hashed = {key: value for key, value in config.items() if key not in _IGNORED_KEYS}
    digest = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode())
    for file in sorted(path.glob("*.safetensors")):
        _add_file(digest, file)
    return digest.hexdigest()


def _tensors(file: Path) -> Iterator[tuple[str, int]]:
    header, _ = read_header(file)
    with _errors_as_not_a_model(file):
        for name, tensor in header.items():
            if name != "__metadata__":
                yield name, prod(tensor["shape"])


@contextmanager
def _errors_as_not_a_model(file: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise NotAModel(
            f"{file} may not be read ({error.strerror}): make it readable for the user that runs "
            "the service"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise NotAModel(
            f"{file} is not a safetensors file ({error}): download or save the model again"
        ) from error


def _add_file(digest: "hashlib._Hash", file: Path) -> None:
    header, begin = read_header(file)
    digest.update(json.dumps([file.name, file.stat().st_size, header], sort_keys=True).encode())
    offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    with file.open("rb") as opened:
        for first, end in sorted(offsets):
            opened.seek(begin + first)
            digest.update(opened.read(min(_SAMPLE_BYTES, end - first)))
