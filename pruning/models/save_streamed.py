"""Write a pruned checkpoint with one tensor at a time: of a streamed model, which has its weights
on disk, of a repaired one, whose own tensors are made when they are read, or of one with a tower
for images.

Configs, keys and values are those that ``save_pretrained`` writes for a view of the model. With a
tower for images, every other tensor, and every key of the config that is not about blocks, is that
of the parent. The names in the files are the parent's then, with blocks renumbered.
"""

import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.modeling_utils import str_to_torch_dtype
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from pruning.models.architectures import architecture
from pruning.models.blocks import NO_OWN, Own, pruned_config, view
from pruning.models.safetensors_files import StoredTensor, stored_tensors
from pruning.models.towers import whole_config

SHARD_BYTES = 5 * 10**9
_DTYPE_KEYS = ("dtype", "torch_dtype")
_DTYPE_NAMES = {dtype: name for name, dtype in str_to_torch_dtype.items()}  # in safetensors files


class Readable(Protocol):
    """A dense model, in memory or on disk, whose parameters can be read one by one.

    It may be the language tower of the model in the directory ``path``.
    """

    @property
    def path(self) -> Path: ...

    @property
    def model(self) -> PreTrainedModel:
        """Config, modules and shapes; its parameters need no values."""

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``(name, values)`` of these parameters."""


def save_streamed(
    dense: Readable,
    keep: Sequence[int],
    directory: Path,
    shard_bytes: int = SHARD_BYTES,
    own: Own = NO_OWN,
) -> None:
    """Write the model of the blocks ``keep``, in files of at most ``shard_bytes`` bytes."""
    pruned = view(dense.model, keep)
    pruned.save_pretrained(directory, state_dict={})  # only the configs
    dense_names = _dense_names(dense.model, pruned)
    shapes = {name: parameter.to("meta") for name, parameter in pruned.named_parameters()}
    tensors = {
        stored: torch.empty_like(part)  # experts would share the storage of their layer
        for stored, part in revert_weight_conversion(pruned, shapes).items()
    }
    names_of = {  # the parameter that is stored, as one tensor, or as several such as experts
        stored: name
        for name, shape in shapes.items()
        for stored in revert_weight_conversion(pruned, {name: shape})
    }

    def values(stored: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        for name in sorted({names_of[each] for each in stored}):
            yield from revert_weight_conversion(
                pruned, {name: _value(dense_names[name], dense, own)}
            ).items()

    write_shards(directory, tensors, values, shard_bytes, pruned.num_parameters())


def save_tower(
    tower: Readable, keep: Sequence[int], directory: Path, shard_bytes: int, own: Own
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
            own_dtype = str_to_torch_dtype[part.get_dtype()]
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


def write_shards(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    values: Callable[[Iterable[str]], Iterable[tuple[str, torch.Tensor]]],
    shard_bytes: int,
    num_parameters: int,
) -> None:
    """Write files of at most ``shard_bytes`` with ``tensors``, whose values need not exist yet.

    ``values(names)`` yields those of a file, in any order and perhaps with others.
    """
    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=shard_bytes)
    for file, names in split.filename_to_tensors.items():
        _write(directory / file, {name: tensors[name] for name in names}, values(names))
    if split.is_sharded:
        metadata = {"total_parameters": num_parameters, **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")


def kept_weights(
    dense: Readable, keep: Sequence[int], own: Own = NO_OWN
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield ``(name, values)`` of every parameter of the model of the blocks ``keep``."""
    for name, dense_name in _dense_names(dense.model, view(dense.model, keep)).items():
        yield name, _value(dense_name, dense, own)


def other_tensors(path: Path, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the stored tensors that the language tower ``model`` in ``path`` does not have."""
    for stored in stored_tensors(path, model):
        if not stored.parameter:
            with safe_open(stored.file, framework="pt") as opened:
                yield stored.key, opened.get_tensor(stored.key)


def _dense_names(model: PreTrainedModel, pruned: PreTrainedModel) -> dict[str, str]:
    """The names in ``model`` of the parameters of a view of it, by their names there."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: names[id(parameter)] for name, parameter in pruned.named_parameters()}


def _value(dense_name: str, dense: Readable, own: Own) -> torch.Tensor:
    if dense_name in own:
        return own[dense_name]
    [(_, values)] = dense.read([dense_name])
    return values


def _write(
    file: Path, shard: Mapping[str, torch.Tensor], values: Iterable[tuple[str, torch.Tensor]]
) -> None:
    """Write a safetensors file: the length of a JSON header, the header, and the values.

    ``values`` may be in any order. Values of tensors in other shards are skipped.
    """
    # By decreasing item size for alignment, then by name, as safetensors does.
    names = sorted(shard, key=lambda name: (-shard[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins: dict[str, int] = {}
    end = 0
    for name in names:
        begins[name], end = end, end + shard[name].nbytes
        header[name] = {
            "dtype": _DTYPE_NAMES[shard[name].dtype],
            "shape": list(shard[name].shape),
            "data_offsets": [begins[name], end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as written:
        written.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, tensor in values:
            if name in begins:
                written.seek(8 + len(encoded) + begins[name])
                on_cpu = tensor.detach().cpu().contiguous()
                written.write(on_cpu.view(-1).view(torch.uint8).numpy().data)


def _kept(tower: Readable, keep: Sequence[int]) -> Iterator[tuple[str, StoredTensor]]:
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


def _config(tower: Readable, keep: Sequence[int], *, is_cast: bool) -> dict[str, Any]:
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
