"""Write a GGUF file for llama.cpp, one tensor at a time, from a model in memory or on disk.

It supports the families whose GGUF files transformers can load, so that each file can be verified.
llama.cpp describes a byte-level BPE tokenizer by its tokens, its merges and the name of its
pre-tokenizer. The name is derived from ``tokenizer.json``, and never guessed.
Needs the extra ``gguf``.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGMLQuantizationType,
    GGUFWriter,
    LlamaFileType,
    TokenType,
    get_tensor_name_map,
)
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from pruning.checkpoints.llama_cpp import GgufUnsupported, conversion_advice, slides
from pruning.models.blocks import NO_OWN, Own, view
from pruning.models.save_streamed import kept_weights
from pruning.search.dense_model import DenseModel
from pruning.sleb import Blocks

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|{NUMBERS}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: Mapping[str, str] = {
    _WORDS.replace("{NUMBERS}", r"\p{N}{1,3}"): "llama-bpe",
    _WORDS.replace("{NUMBERS}", r"\p{N}"): "qwen2",
}

_SPECIAL = ("bos", "eos", "unk", "pad")  # tokens that GGUF names


def vocabulary_of(
    directory: Path, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> dict[str, Any]:
    """The tokenizer of the model in ``directory``, filled up to ``vocab_size``, in GGUF.

    By the names that ``GGUFWriter`` has for its fields. Raises ``GgufUnsupported``.
    """
    try:
        fields = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GgufUnsupported(f"GGUF export requires {directory}/tokenizer.json") from error
    if (fields.get("model") or {}).get("type") != "BPE":
        raise GgufUnsupported("GGUF export supports only byte-level BPE tokenizers")
    splitting = _splitting(fields)
    by_id = {number: token for token, number in fields["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in fields["added_tokens"]}
    if (size := max({**by_id, **added}, default=0) + 1) > vocab_size:
        raise GgufUnsupported(f"the tokenizer has {size} tokens, but the model has {vocab_size}")
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    kinds = [TokenType.UNUSED] * vocab_size
    for number, token in by_id.items():
        tokens[number], kinds[number] = token, TokenType.NORMAL
    for number, entry in added.items():
        tokens[number] = entry["content"]
        kinds[number] = TokenType.CONTROL if entry["special"] else TokenType.USER_DEFINED
    merges = fields["model"]["merges"]
    template = tokenizer.chat_template
    framed: list[int] = tokenizer("a").input_ids
    return {
        "tokenizer_model": "gpt2",  # GGUF's name for any byte-level BPE
        "tokenizer_pre": splitting,
        "token_list": tokens,
        "token_types": kinds,
        "token_merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
        "add_bos_token": framed[:1] == [tokenizer.bos_token_id],
        "add_eos_token": framed[-1:] == [tokenizer.eos_token_id],
        **_special(tokenizer, vocab_size),
        **({"chat_template": template} if isinstance(template, str) else {}),
    }


def _splitting(fields: Mapping[str, Any]) -> str:
    steps = _steps(fields.get("pre_tokenizer"))
    kinds = [step.get("type") for step in steps]
    is_plain = not any(step.get("add_prefix_space") for step in steps)
    if is_plain and kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if is_plain and kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits"):
        return "smollm"
    if is_plain and kinds == ["Split", "ByteLevel"] and steps[0].get("behavior") == "Isolated":
        pattern = steps[0]["pattern"].get("Regex", "")
        if pattern in _SPLITS:
            return _SPLITS[pattern]
    raise GgufUnsupported(
        f"the pre-tokenizer of this model ({', '.join(map(str, kinds)) or 'none'} in "
        "tokenizer.json) has no name in GGUF: use convert_hf_to_gguf.py of llama.cpp "
        "on the exported directory"
    )


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer.get("type") == "Sequence":
        return list(pre_tokenizer["pretokenizers"])
    return [pre_tokenizer]


def _special(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> dict[str, int]:
    """The ids of special tokens, without those beyond the vocabulary: transformers may add some."""
    names = [f"{name}_token_id" for name in _SPECIAL]
    ids = {name: getattr(tokenizer, name) for name in names}
    return {
        name: number
        for name, number in ids.items()
        if isinstance(number, int) and number < vocab_size
    }


FAMILIES: Mapping[str, MODEL_ARCH] = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
}
_KINDS: Mapping[torch.dtype, tuple[GGMLQuantizationType, LlamaFileType]] = {
    torch.float32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    torch.float16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    torch.bfloat16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}


def check_gguf(config: PreTrainedConfig) -> None:
    """Raise ``GgufUnsupported`` unless llama.cpp computes what a model with this config does."""
    if config.model_type not in FAMILIES:
        raise GgufUnsupported(
            f"GGUF export supports {', '.join(FAMILIES)}, not {config.model_type}: "
            f"{conversion_advice(config)}"
        )
    rotation = (config.rope_parameters or {}).get("rope_type", "default")
    unsupported = {
        f"rotary embeddings of type {rotation}": rotation != "default",
        "a sliding window": slides(config),
        "biases in its feed-forward parts": getattr(config, "mlp_bias", False),
        f"{config.hidden_act} in its feed-forward parts": config.hidden_act != "silu",
    }
    if reasons := [what for what, is_so in unsupported.items() if is_so]:
        raise GgufUnsupported(
            f"GGUF export does not support a model with {' and '.join(reasons)}: "
            f"{conversion_advice(config)}"
        )


def write_gguf(file: Path, dense: DenseModel, keep: Blocks, name: str, own: Own = NO_OWN) -> None:
    """Write the model that keeps these blocks, with ``own`` tensors and ``name`` in its metadata.

    Matrices are stored in the dtype of ``dense``, vectors in float32, as llama.cpp expects. Raises
    ``GgufUnsupported``.
    """
    pruned = view(dense.model, keep)
    check_gguf(pruned.config)
    config, dtype = pruned.config, dense.model.dtype
    architecture, (_, file_type) = FAMILIES[config.model_type], _KINDS[dtype]
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[architecture])
    _add_shape(writer, config, name, file_type)
    vocabulary = vocabulary_of(dense.path, dense.tokenizer, config.vocab_size)
    for field, value in vocabulary.items():
        getattr(writer, f"add_{field}")(value)
    names = get_tensor_name_map(architecture, len(keep))
    for parameter_name, parameter in pruned.named_parameters():
        stored_name = names.get_name(parameter_name, try_suffixes=(".weight", ".bias"))
        if stored_name is None:
            raise GgufUnsupported(f"GGUF has no name for the weight {parameter_name}")
        stored_dtype = torch.float32 if parameter.ndim == 1 else dtype
        num_bytes = parameter.numel() * stored_dtype.itemsize
        kind, _ = _KINDS[stored_dtype]
        writer.add_tensor_info(
            stored_name, parameter.shape, np.dtype("f4"), num_bytes, raw_dtype=kind
        )
    # rotary embeddings pair neighbours there, and not two halves
    is_interleaved = architecture is MODEL_ARCH.LLAMA
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for parameter_name, values in kept_weights(dense, keep, own):
        placed = _interleaved(parameter_name, values, config) if is_interleaved else values
        stored = placed.detach().cpu().to(torch.float32 if values.ndim == 1 else dtype)
        writer.write_tensor_data(stored.contiguous().view(torch.uint8).numpy())
    writer.close()


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


def _interleaved(name: str, values: torch.Tensor, config: PreTrainedConfig) -> torch.Tensor:
    """Reorder rows of queries and keys ``[heads * head_dim, ...]`` so that rotated pairs adjoin."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    projection = name.split(".")[-2]
    if projection not in heads:
        return values
    halves = values.reshape(heads[projection], 2, -1, *values.shape[1:])
    return halves.transpose(1, 2).reshape(values.shape)
