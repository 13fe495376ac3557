"""The safetensors of a model on disk, read parameter by parameter under the names the model uses.

What is one tensor there stays in the memory map of its file until it is copied; what transformers
puts together of several, as the experts of a layer, is made when it is read. Nothing is kept open.

How large the weights of a model on disk are, from the headers of its files alone. No torch.

Whether two directories hold the same model, told without reading all of its weights.
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

_Open = Callable[[Path], Any]  # a file to safetensors' handle of it


@dataclass(frozen=True)
class _Place:
    file: Path
    key: str
    pattern: str = ""  # of a converter, that the key matches


@dataclass(frozen=True)
class _Stored:
    """One tensor, or several with what transformers makes one parameter of them by."""

    places: tuple[_Place, ...]
    converter: WeightConverter | None = None

    def read(self, name: str, opened: _Open) -> torch.Tensor:
        tensors = [opened(place.file).get_tensor(place.key) for place in self.places]
        if self.converter is None:
            [only] = tensors
            assert isinstance(only, torch.Tensor)
            return only
        converter = copy.deepcopy(self.converter)  # it collects what it is given
        for place, tensor in zip(self.places, tensors, strict=True):
            converter.add_tensor(name, place.key, place.pattern, tensor)
        made: torch.Tensor = converter.convert(name)[name]
        return made


class WeightFiles:
    """Where the values of every parameter of ``model`` lie, in one file or in shards.

    Keys are renamed as transformers renames them when it loads, and one of two tied parameters
    stands for both. Raises ``NotAModel`` for a parameter that no tensor is stored for.
    """

    def __init__(self, path: Path, model: PreTrainedModel) -> None:
        stored = _stored(path, model)
        tied = model.all_tied_weights_keys
        twins = {**tied, **{source: name for name, source in tied.items()}}
        self._stored: dict[str, _Stored] = {}
        for name, _ in model.named_parameters(remove_duplicate=False):
            its = stored.get(name) or stored.get(twins.get(name, name))
            if its is None:
                raise NotAModel(
                    f"{path}: {name} is stored in a way that cannot be read piece by piece; save "
                    f"the model again with save_pretrained"
                )
            self._stored[name] = its

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``(name, tensor)`` as stored, if whole backed by the file: copy it, never write."""
        with ExitStack() as files:

            @cache
            def opened(file: Path) -> Any:  # noqa: ANN401 - safetensors names no type for it
                return files.enter_context(safe_open(file, framework="pt"))

            for name in names:
                yield name, self._stored[name].read(name, opened)

    def are_equal(self, name: str, other: str) -> bool:
        """Whether two parameters have the same values: one tensor, or two alike."""
        if self._stored[name] == self._stored[other]:
            return True
        (_, ours), (_, theirs) = *self.read([name]), *self.read([other])
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def _stored(path: Path, model: PreTrainedModel) -> dict[str, _Stored]:
    conversions = get_model_conversion_mapping(model)
    renamings = [its for its in conversions if isinstance(its, WeightRenaming)]
    converters = [
        its for its in conversions if isinstance(its, WeightConverter) and _makes_one(its)
    ]
    by_pattern = {pattern: its for its in converters for pattern in its.source_patterns}
    known, prefix = model.state_dict(), model.base_model_prefix
    places: dict[str, list[_Place]] = {}
    for file, key in sorted(_keys(path), key=lambda its: dot_natural_key(its[1])):
        name, pattern = rename_source_key(key, renamings, converters, prefix, known)
        places.setdefault(name, []).append(_Place(file, key, pattern or ""))
    return {
        name: _Stored(tuple(its), by_pattern.get(its[0].pattern)) for name, its in places.items()
    }


def _makes_one(converter: WeightConverter) -> bool:
    """Of several tensors, and not the other way round."""
    return len(converter.target_patterns) == 1


def _keys(path: Path) -> Iterator[tuple[Path, str]]:
    for file in _files(path):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - a file, not a mapping
                yield file, key


def _files(path: Path) -> list[Path]:
    if (path / SAFE_WEIGHTS_NAME).is_file():
        return [path / SAFE_WEIGHTS_NAME]
    index = json.loads((path / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
    return sorted({path / name for name in index["weight_map"].values()})


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


_SAMPLE_BYTES = 1024  # of the beginning of every tensor
_SAYS_NOTHING = ("_name_or_path", "transformers_version")  # of the config, but who saved it


def fingerprint(path: Path) -> str:
    """Over the config, the headers and sizes of all safetensors, and a sample of every tensor.

    Another training run changes every tensor, and so the sample of each; one number that was
    edited by hand may go unnoticed. Raises ``OSError``, ``ValueError`` or ``NotAModel``.
    """
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    told = {key: value for key, value in config.items() if key not in _SAYS_NOTHING}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for file in sorted(path.glob("*.safetensors")):
        _add_file(digest, file)
    return digest.hexdigest()


def _add_file(digest: "hashlib._Hash", file: Path) -> None:
    header, begin = read_header(file)
    digest.update(json.dumps([file.name, file.stat().st_size, header], sort_keys=True).encode())
    offsets = [entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"]
    with file.open("rb") as opened:
        for first, end in sorted(offsets):
            opened.seek(begin + first)
            digest.update(opened.read(min(_SAMPLE_BYTES, end - first)))
