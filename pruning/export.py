"""A pruned checkpoint written from a streamed model, with one tensor in memory at a time.

Configs, keys and values are those that ``save_pretrained`` writes of a view of the whole model.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from pruning.blocks import view
from pruning.streaming import StreamedModel

SHARD_BYTES = 5 * 10**9
_DTYPES = MappingProxyType(
    {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
    }
)


def export(
    streamed: StreamedModel, keep: Sequence[int], directory: Path, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write the model that keeps these blocks into ``directory``, in shards of that size."""
    pruned = view(streamed.model, keep)
    pruned.save_pretrained(directory, state_dict={})  # the configs alone
    dense_names = {id(parameter): name for name, parameter in streamed.model.named_parameters()}
    parameters = revert_weight_conversion(pruned, dict(pruned.named_parameters()))
    split = split_torch_state_dict_into_shards(parameters, max_shard_size=shard_bytes)
    for file, names in split.filename_to_tensors.items():
        shard = {name: parameters[name] for name in names}
        stored = {name: dense_names[id(parameter)] for name, parameter in shard.items()}
        _write(directory / file, shard, stored, streamed)
    if split.is_sharded:
        metadata = {"total_parameters": pruned.num_parameters(), **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (directory / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")


def _write(
    file: Path,
    shard: Mapping[str, torch.Tensor],
    dense_names: Mapping[str, str],
    streamed: StreamedModel,
) -> None:
    """One safetensors file: the length of a JSON header, the header, and the values behind it."""
    # The widest first, so that all are aligned, and then by name, as safetensors itself does.
    names = sorted(shard, key=lambda name: (-shard[name].itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + shard[name].nbytes
        header[name] = {
            "dtype": _DTYPES[shard[name].dtype],
            "shape": list(shard[name].shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with file.open("wb") as written:
        written.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in names:
            for _, values in streamed.read([dense_names[name]]):
                written.write(values.contiguous().view(-1).view(torch.uint8).numpy().data)
