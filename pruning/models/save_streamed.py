"""Write a pruned checkpoint with one parameter at a time: of a streamed model, which has its
weights on disk, or of a repaired one, whose own tensors are made when they are read.

Configs, keys and values are those that ``save_pretrained`` writes for a view of the model.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from pruning.models.blocks import NO_OWN, Own, view

SHARD_BYTES = 5 * 10**9
_DTYPES = MappingProxyType(
    {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.int16: "I16",
        torch.int8: "I8",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }
)


class Readable(Protocol):
    """A dense model, in memory or on disk, whose parameters can be read one by one."""

    @property
    def model(self) -> PreTrainedModel:
        """Config, modules and shapes; its parameters need no values."""

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield ``(name, values)`` of these parameters."""


def torch_dtype(name: str) -> torch.dtype:
    """The type that a safetensors file calls so."""
    return next(dtype for dtype, known in _DTYPES.items() if known == name)


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
            "dtype": _DTYPES[shard[name].dtype],
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
