"""Write a pruned checkpoint from a streamed model, with one parameter in memory at a time.

Configs, keys and values are those that ``save_pretrained`` writes for a view of the model.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from pruning.models.blocks import view
from pruning.models.streaming import StreamedModel

SHARD_BYTES = 5 * 10**9
_DTYPES = MappingProxyType(
    {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
    }
)


def save_streamed(
    streamed: StreamedModel, keep: Sequence[int], directory: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the model of the blocks ``keep``, in files of at most ``shard_bytes`` bytes."""
    pruned = view(streamed.model, keep)
    pruned.save_pretrained(directory, state_dict={})  # only the configs
    dense_names = {id(parameter): name for name, parameter in streamed.model.named_parameters()}
    parameters: dict[str, torch.Tensor] = dict(pruned.named_parameters())
    tensors = revert_weight_conversion(
        pruned, parameters
    )  # under their stored names, without values
    sources = {
        stored: _Source(name, dense_names[id(parameter)])
        for name, parameter in parameters.items()
        for stored in revert_weight_conversion(pruned, {name: parameter})
    }
    split = split_torch_state_dict_into_shards(tensors, max_shard_size=shard_bytes)
    for file, names in split.filename_to_tensors.items():
        shard = {name: tensors[name] for name in names}
        wanted = {sources[name] for name in names}
        values = (_values(source, pruned, streamed) for source in sorted(wanted))
        _write(directory / file, shard, chain.from_iterable(values))
    if split.is_sharded:
        metadata = {"total_parameters": pruned.num_parameters(), **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")


def kept_weights(
    streamed: StreamedModel, keep: Sequence[int]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield ``(name, values)`` of every parameter of the model of the blocks ``keep``."""
    dense_names = {id(parameter): name for name, parameter in streamed.model.named_parameters()}
    for name, parameter in view(streamed.model, keep).named_parameters():
        for _, values in streamed.read([dense_names[id(parameter)]]):
            yield name, values


@dataclass(frozen=True, order=True)
class _Source:
    """A parameter, stored as one tensor, or as several such as the experts of a layer."""

    name: str
    dense_name: str


def _values(
    source: _Source, pruned: PreTrainedModel, streamed: StreamedModel
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the stored tensors of the parameter by their names in the file."""
    for _, values in streamed.read([source.dense_name]):
        yield from revert_weight_conversion(pruned, {source.name: values}).items()


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
                written.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
