"""Write a model with a tower for images, whose language tower has lost blocks.

Every other tensor, and every key of the config that is not about blocks, is that of the parent. The
names in the files are the parent's, with blocks renumbered.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from pruning.models.architectures import architecture
from pruning.models.blocks import Own, pruned_config
from pruning.models.safetensors_files import StoredTensor, stored_tensors
from pruning.models.save_streamed import Readable, torch_dtype, write_shards
from pruning.models.towers import whole_config

_DTYPE_KEYS = ("dtype", "torch_dtype")


class Tower(Readable, Protocol):
    """The language tower of the model in a directory."""

    @property
    def path(self) -> Path: ...


def save_tower(
    tower: Tower, keep: Sequence[int], directory: Path, shard_bytes: int, own: Own
) -> None:
    """Write the whole model with these blocks of its language tower, in the tower's type."""
    directory.mkdir(parents=True, exist_ok=True)
    kept = dict(_kept(tower, keep))
    dtype = tower.model.dtype
    is_cast = dtype != whole_config(tower.path).dtype
    with ExitStack() as files:

        @cache
        def opened(file: Path) -> Any:  # noqa: ANN401 - safetensors has no type for it
            return files.enter_context(safe_open(file, framework="pt"))

        def shape(stored: StoredTensor) -> torch.Tensor:
            part = opened(stored.file).get_slice(stored.key)
            own_dtype = torch_dtype(part.get_dtype())
            wanted = dtype if is_cast and own_dtype.is_floating_point else own_dtype
            return torch.empty(part.get_shape(), dtype=wanted, device="meta")

        shapes = {name: shape(stored) for name, stored in kept.items()}

        def values(names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
            for name in names:
                stored = kept[name]
                if stored.parameter in own:
                    value = own[stored.parameter]
                else:
                    value = opened(stored.file).get_tensor(stored.key)
                yield name, value.to(shapes[name].dtype)

        num_parameters = sum(each.numel() for each in shapes.values())
        write_shards(directory, shapes, values, shard_bytes, num_parameters)
    text = json.dumps(_config(tower, keep, is_cast=is_cast), indent=2, sort_keys=True) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")


def other_tensors(path: Path, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the stored tensors that the language tower ``model`` in ``path`` does not have."""
    for stored in stored_tensors(path, model):
        if not stored.parameter:
            with safe_open(stored.file, framework="pt") as opened:
                yield stored.key, opened.get_tensor(stored.key)


def _kept(tower: Tower, keep: Sequence[int]) -> Iterator[tuple[str, StoredTensor]]:
    """What is written of the parent, by the new names."""
    blocks = f"{architecture(tower.model.config).blocks}."
    for stored in stored_tensors(tower.path, tower.model):
        if not stored.parameter.startswith(blocks):
            yield stored.key, stored
            continue
        block = stored.parameter.removeprefix(blocks).partition(".")[0]
        if int(block) in keep:
            place = re.compile(rf"(?<=\.){block}(?=\.)")
            yield place.sub(str(keep.index(int(block))), stored.key, count=1), stored


def _config(tower: Tower, keep: Sequence[int], *, is_cast: bool) -> dict[str, Any]:
    """The parent's config, in which the part about the language tower is adapted."""
    fields: dict[str, Any] = json.loads((tower.path / "config.json").read_text(encoding="utf-8"))
    text = fields.get("text_config", fields)  # older ones have no parts
    row, pruned = architecture(tower.model.config), pruned_config(tower.model.config, keep)
    own = whole_config(tower.path).get_text_config(decoder=True)
    for key in (*row.per_block, *row.boundaries):
        if getattr(own, key, None) is not None:
            text[key] = getattr(pruned, key)
    if "per_layer_config" in text:
        text["per_layer_config"] = pruned.to_dict()["per_layer_config"]
    for key in row.periods:
        text.pop(key, None)
    text["num_hidden_layers"] = len(keep)
    if is_cast:
        dtype = str(tower.model.dtype).removeprefix("torch.")
        for part in (fields, *(each for each in fields.values() if isinstance(each, dict))):
            part.update({key: dtype for key in _DTYPE_KEYS if key in part})
        fields["dtype"] = dtype
    return fields
