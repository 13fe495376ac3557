"""A GGUF file for llama.cpp, written from a model in memory or on disk, one tensor at a time.

For families of which transformers can read such a file back, so that it can be compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    get_tensor_name_map,
)
from transformers import PreTrainedConfig

from pruning.checkpoints.gguf_vocabulary import GgufUnsupported, Vocabulary, vocabulary_of
from pruning.models.blocks import view
from pruning.search.dense_model import Residence
from pruning.sleb import Blocks


@dataclass(frozen=True)
class _Family:
    architecture: MODEL_ARCH
    is_interleaved: bool = False  # rotations there turn pairs of neighbours, not of halves


@dataclass(frozen=True)
class _Kind:
    stored: GGMLQuantizationType
    file: LlamaFileType


FAMILIES: Mapping[str, _Family] = MappingProxyType(
    {
        "llama": _Family(MODEL_ARCH.LLAMA, is_interleaved=True),
        "mistral": _Family(MODEL_ARCH.LLAMA, is_interleaved=True),
        "qwen2": _Family(MODEL_ARCH.QWEN2),
        "qwen3": _Family(MODEL_ARCH.QWEN3),
    }
)
_KINDS: Mapping[torch.dtype, _Kind] = MappingProxyType(
    {
        torch.float32: _Kind(GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
        torch.float16: _Kind(GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
        torch.bfloat16: _Kind(GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    }
)


def check_gguf(config: PreTrainedConfig) -> None:
    """Raises ``GgufUnsupported`` for what llama.cpp would compute in another way, or not at all."""
    if config.model_type not in FAMILIES:
        raise GgufUnsupported(
            f"GGUF is written for {', '.join(FAMILIES)}, and not for {config.model_type}: export a "
            f"directory, and try convert_hf_to_gguf.py of llama.cpp on it"
        )
    rotation = (config.rope_parameters or {}).get("rope_type", "default")
    unlike = {
        f"rotary embeddings of type {rotation}": rotation != "default",
        "a sliding window": _slides(config),
        "biases in its feed-forward parts": getattr(config, "mlp_bias", False),
        f"{config.hidden_act} in its feed-forward parts": config.hidden_act != "silu",
    }
    if found := [what for what, is_so in unlike.items() if is_so]:
        raise GgufUnsupported(
            f"GGUF is not written for a model with {' and '.join(found)}: export a directory, and "
            f"try convert_hf_to_gguf.py of llama.cpp on it"
        )


def write_gguf(file: Path, dense: Residence, keep: Blocks, name: str) -> None:
    """Write the model that keeps these blocks, called ``name`` inside. Raises ``GgufUnsupported``.

    Matrices are stored in the dtype of ``dense``, vectors in float32, as llama.cpp wants them.
    """
    check_gguf(dense.model.config)
    pruned = view(dense.model, keep)
    config, dtype = pruned.config, dense.model.dtype
    family = FAMILIES[config.model_type]
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[family.architecture])
    _add_shape(writer, config, name, _KINDS[dtype].file)
    _add_vocabulary(writer, vocabulary_of(dense.path, dense.tokenizer, config.vocab_size))
    names = get_tensor_name_map(family.architecture, len(keep))
    for parameter_name, parameter in pruned.named_parameters():
        stored_name = names.get_name(parameter_name, try_suffixes=(".weight", ".bias"))
        if stored_name is None:
            raise GgufUnsupported(f"GGUF has no name for {parameter_name}: it was not written")
        its = torch.float32 if parameter.ndim == 1 else dtype
        num_bytes = parameter.numel() * its.itemsize
        writer.add_tensor_info(
            stored_name, parameter.shape, np.dtype("f4"), num_bytes, raw_dtype=_KINDS[its].stored
        )
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for parameter_name, values in dense.weights(keep):
        placed = _interleaved(parameter_name, values, config) if family.is_interleaved else values
        stored = placed.detach().cpu().to(torch.float32 if values.ndim == 1 else dtype)
        writer.write_tensor_data(stored.contiguous().view(torch.uint8).numpy())
    writer.close()


def _slides(config: PreTrainedConfig) -> bool:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return any(kind != "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is not None


def _add_shape(
    writer: GGUFWriter, config: PreTrainedConfig, name: str, file_type: LlamaFileType
) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(name)
    writer.add_file_type(file_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model("gpt2")  # what GGUF calls any byte-level BPE
    writer.add_tokenizer_pre(vocabulary.splitting)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
    }
    for purpose, number in vocabulary.special.items():
        add[purpose](number)
    if vocabulary.chat_template is not None:
        writer.add_chat_template(vocabulary.chat_template)


def _interleaved(name: str, values: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """Queries and keys ``[heads * head_dim, ...]`` with the two that turn together side by side."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    projection = name.split(".")[-2]
    if projection not in heads:
        return values
    halves = values.reshape(heads[projection], 2, -1, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape)
