"""The parameters in the safetensors files of a model, without loading a model.

Tensors are memory-mapped and read one parameter at a time. Files are open only during a read.
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
from pruning.models.towers import language_names, whole_without_weights

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
        whole = whole_without_weights(path, model)
        names = language_names(whole)
        stored = {names.get(name, name): tensor for name, tensor in _stored(path, whole).items()}
        tied = model.all_tied_weights_keys
        twins = {**tied, **{source: name for name, source in tied.items()}}
        self._stored: dict[str, _Stored] = {}
        for name, _ in model.named_parameters(remove_duplicate=False):
            tensor = stored.get(name) or stored.get(twins.get(name, name))
            if tensor is None:
                raise NotAModel(
                    f"{path}: {name} is stored in an unsupported form: save the model again with "
                    "save_pretrained"
                )
            self._stored[name] = tensor

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
class StoredTensor:
    """A tensor in a file, and the parameter that it is of the language model; "" for others."""

    file: Path
    key: str
    parameter: str


def stored_tensors(path: Path, model: PreTrainedModel) -> Iterator[StoredTensor]:
    """Every tensor in the directory, of which ``model`` is the language model."""
    whole = whole_without_weights(path, model)
    names = language_names(whole)
    for name, stored in _stored(path, whole).items():
        for place in stored.places:
            yield StoredTensor(place.file, place.key, names.get(name, ""))


def _stored(path: Path, model: PreTrainedModel) -> dict[str, _Stored]:
    conversions = get_model_conversion_mapping(model)
    renamings = [rule for rule in conversions if isinstance(rule, WeightRenaming)]
    converters = [  # those that make one parameter of several tensors, and do not split one
        rule
        for rule in conversions
        if isinstance(rule, WeightConverter) and len(rule.target_patterns) == 1
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
