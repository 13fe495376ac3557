"""The safetensors of a model on disk, read tensor by tensor under the names the model uses.

Everything stays in the memory map of a file until it is copied; nothing is kept open.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from pruning.models import NotAModel


@dataclass(frozen=True)
class _Place:
    file: Path
    key: str


class WeightFiles:
    """Where the values of every parameter of ``model`` lie, in one file or in shards.

    Keys are renamed as transformers renames them when it loads, and one of two tied parameters
    stands for both. Raises ``NotAModel`` for a parameter that no tensor is stored for.
    """

    def __init__(self, path: Path, model: PreTrainedModel) -> None:
        stored = _places(path, model)
        tied = model.all_tied_weights_keys
        twins = {**tied, **{source: name for name, source in tied.items()}}
        self._places: dict[str, _Place] = {}
        for name, _ in model.named_parameters(remove_duplicate=False):
            place = stored.get(name) or stored.get(twins.get(name, name))
            if place is None:
                raise NotAModel(
                    f"{path}: {name} is stored in a way that cannot be read piece by piece; save "
                    f"the model again with save_pretrained"
                )
            self._places[name] = place

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``(name, tensor)`` as stored, backed by the file: copy it, never write to it."""

        def file_of(name: str) -> Path:
            return self._places[name].file

        for file, in_file in groupby(sorted(names, key=file_of), key=file_of):
            with safe_open(file, framework="pt") as opened:
                for name in in_file:
                    yield name, opened.get_tensor(self._places[name].key)

    def are_equal(self, name: str, other: str) -> bool:
        """Whether two parameters have the same values: one tensor, or two alike."""
        if self._places[name] == self._places[other]:
            return True
        (_, ours), (_, theirs) = *self.read([name]), *self.read([other])
        return ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def _places(path: Path, model: PreTrainedModel) -> dict[str, _Place]:
    conversions = get_model_conversion_mapping(model)
    renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
    known, prefix = model.state_dict(), model.base_model_prefix
    places = {}
    for file in _files(path):
        with safe_open(file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - a file, not a mapping
                name, _ = rename_source_key(key, renamings, [], prefix, known)
                places[name] = _Place(file, key)
    return places


def _files(path: Path) -> list[Path]:
    if (path / SAFE_WEIGHTS_NAME).is_file():
        return [path / SAFE_WEIGHTS_NAME]
    index = json.loads((path / SAFE_WEIGHTS_INDEX_NAME).read_text(encoding="utf-8"))
    return sorted({path / name for name in index["weight_map"].values()})
