"""The safetensors of a model on disk, read parameter by parameter under the names the model uses.

What is one tensor there stays in the memory map of its file until it is copied; what transformers
puts together of several, as the experts of a layer, is made when it is read. Nothing is kept open.
"""

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
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
