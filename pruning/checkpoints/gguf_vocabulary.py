"""The tokenizer of a model in the words of a GGUF file, if llama.cpp has one that does the same.

llama.cpp knows a byte-level BPE by its tokens, its merges and the name of how text is split in
front of them. The name is told by what ``tokenizer.json`` says of it, and never guessed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedTokenizerBase

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|{NUMBERS}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS: Mapping[str, str] = MappingProxyType(
    {
        _WORDS.replace("{NUMBERS}", r"\p{N}{1,3}"): "llama-bpe",
        _WORDS.replace("{NUMBERS}", r"\p{N}"): "qwen2",
    }
)


class GgufUnsupported(ValueError):
    """llama.cpp has no such model or tokenizer, or nobody has made sure that it has."""


class _Kind(IntEnum):
    """As GGUF numbers them."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


@dataclass(frozen=True)
class Vocabulary:
    """``tokens`` and ``kinds`` by id; ``special`` has ids by what they are for, as bos."""

    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    merges: tuple[str, ...]
    splitting: str  # the name that llama.cpp has for it
    special: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None


def vocabulary_of(
    directory: Path, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> Vocabulary:
    """Of the model in ``directory``, filled up to ``vocab_size``. Raises ``GgufUnsupported``."""
    try:
        fields = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GgufUnsupported(f"GGUF needs a tokenizer.json, and {directory} has none") from error
    if (fields.get("model") or {}).get("type") != "BPE":
        raise GgufUnsupported("GGUF is written for byte-level BPE tokenizers, and for no others")
    splitting = _splitting(fields)
    by_id = {number: token for token, number in fields["model"]["vocab"].items()}
    added = {entry["id"]: entry for entry in fields["added_tokens"]}
    if (size := max({**by_id, **added}, default=0) + 1) > vocab_size:
        raise GgufUnsupported(f"the tokenizer has {size} tokens, and the model knows {vocab_size}")
    tokens = [f"[PAD{number}]" for number in range(vocab_size)]
    kinds = [_Kind.UNUSED] * vocab_size
    for number, token in by_id.items():
        tokens[number], kinds[number] = token, _Kind.NORMAL
    for number, entry in added.items():
        tokens[number] = entry["content"]
        kinds[number] = _Kind.CONTROL if entry["special"] else _Kind.USER_DEFINED
    merges = fields["model"]["merges"]
    template = tokenizer.chat_template
    framed: list[int] = tokenizer("a").input_ids
    return Vocabulary(
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        merges=tuple(its if isinstance(its, str) else " ".join(its) for its in merges),
        splitting=splitting,
        special=_special(tokenizer, vocab_size),
        adds_bos=framed[:1] == [tokenizer.bos_token_id],
        adds_eos=framed[-1:] == [tokenizer.eos_token_id],
        chat_template=template if isinstance(template, str) else None,
    )


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
        f"GGUF names how a tokenizer splits text, and no name is known here for "
        f"{' and '.join(map(str, kinds)) or 'none at all'} of this tokenizer.json: use "
        f"convert_hf_to_gguf.py of llama.cpp on the exported directory"
    )


def _steps(pre_tokenizer: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if pre_tokenizer is None:
        return []
    if pre_tokenizer.get("type") == "Sequence":
        return list(pre_tokenizer["pretokenizers"])
    return [pre_tokenizer]


def _special(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> dict[str, int]:
    """Some that transformers adds to a tokenizer by itself are none of the model's."""
    ids = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
    }
    return {
        name: number
        for name, number in ids.items()
        if isinstance(number, int) and number < vocab_size
    }
