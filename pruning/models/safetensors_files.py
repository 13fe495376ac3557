"""The safetensors files of a model: parameters, sizes and a fingerprint, without loading a model.

Tensors are memory-mapped and read one parameter at a time. Files are open only during a read.
"""

import copy
import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from pruning.models.store import NotAModel

_MAX_HEADER_BYTES = 100_000_000  # the limit of the format
_BLOCK_NAME = re.compile(r"(?:^|\.)(?:layers|h)\.\d+\.")  # names of blocks in all families
_SAMPLE_BYTES = 1024  # of each tensor in the fingerprint
_IGNORED_KEYS = ("_name_or_path", "transformers_version")  # config keys that differ between copies

_Open = Callable[[Path], Any]  # from a file to safetensors' handle of it


@dataclass(frozen=True)
class _Place:
    file: Path
    key: str
    pattern: str = ""  # the pattern of a converter that matches the key


@dataclass(frozen=True)
class _Stored:
    """The tensor of a parameter, or several with the converter that merges them."""

    places: tuple[_Place, ...]
    converter: WeightConverter | None = None

    def read(self, name: str, opened: _Open) -> torch.Tensor:
        tensors = [opened(place.file).get_tensor(place.key) for place in self.places]
        if self.converter is None:
            [only] = tensors
            assert isinstance(only, torch.Tensor)
            return only
        converter = copy.deepcopy(self.converter)  # it accumulates tensors
        for place, tensor in zip(self.places, tensors, strict=True):
            converter.add_tensor(name, place.key, place.pattern, tensor)
        merged: torch.Tensor = converter.convert(name)[name]
        return merged


class WeightFiles:
    """The stored values of every parameter of ``model``, in one file or in shards.

    Keys are renamed, and tensors merged, as transformers does. Of two tied parameters, one may be
    stored for both. Raises ``NotAModel`` if no tensor is stored for a parameter.
    """

    def __init__(self, path: Path, model: PreTrainedModel) -> None:
        stored = _stored(path, model)
        tied = model.all_tied_weights_keys
        twins = {**tied, **{source: name for name, source in tied.items()}}
        self._stored: dict[str, _Stored] = {}
        for name, _ in model.named_parameters(remove_duplicate=False):
            found = stored.get(name) or stored.get(twins.get(name, name))
            if found is None:
                raise NotAModel(
                    f"{path}: {name} is stored in a form that cannot be read on its own; save the "
                    f"model again with save_pretrained"
                )
            self._stored[name] = found

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``(name, tensor)`` as stored. A tensor may be memory-mapped: do not write to it."""
        with ExitStack() as files:

            @cache
            def opened(file: Path) -> Any:  # noqa: ANN401 - safetensors has no type for it
                return files.enter_context(safe_open(file, framework="pt"))

            for name in names:
                yield name, self._stored[name].read(name, opened)

    def are_equal(self, name: str, other: str) -> bool:
        """Whether two parameters share a tensor, or have tensors of equal dtype and values."""
        if self._stored[name] == self._stored[other]:
            return True
        (_, one), (_, two) = *self.read([name]), *self.read([other])
        return one.dtype == two.dtype and torch.equal(one, two)


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


def _stored(path: Path, model: PreTrainedModel) -> dict[str, _Stored]:
    conversions = get_model_conversion_mapping(model)
    renamings = [rule for rule in conversions if isinstance(rule, WeightRenaming)]
    converters = [
        rule for rule in conversions if isinstance(rule, WeightConverter) and _merges(rule)
    ]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    known, prefix = model.state_dict(), model.base_model_prefix
    places: dict[str, list[_Place]] = {}
    for file, key in sorted(_keys(path), key=lambda entry: dot_natural_key(entry[1])):
        name, pattern = rename_source_key(key, renamings, converters, prefix, known)
        places.setdefault(name, []).append(_Place(file, key, pattern or ""))
    return {
        name: _Stored(tuple(parts), by_pattern.get(parts[0].pattern))
        for name, parts in places.items()
    }


def _merges(converter: WeightConverter) -> bool:
    """Whether the converter makes one parameter of several tensors, and does not split one."""
    return len(converter.target_patterns) == 1


def _keys(path: Path) -> Iterator[tuple[Path, str]]:
    for file in _files(path):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a mapping
                yield file, key


def _files(path: Path) -> list[Path]:
    if (path / SAFE_WEIGHTS_NAME).is_file():
        return [path / SAFE_WEIGHTS_NAME]
    index = json.loads((path / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
    return sorted({path / name for name in index["weight_map"].values()})


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
