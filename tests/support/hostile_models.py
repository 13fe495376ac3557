"""Files of models that would take all memory or time, and a process with limits to open them in."""

import json
import resource
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MEMORY_BYTES = 3 * 2**30
LIMIT_S = 60
# One value each of a config.json, of which every one takes memory, time or sense.
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "labels": {"num_labels": 20_000_000},
    "labels of a tower": {"text_config": {"num_labels": 20_000_000}},
    "old labels": {"_num_labels": 20_000_000},
    "negative labels": {"num_labels": -1},
    "names of labels": {"id2label": {str(number): "x" for number in range(100_001)}},
    "ids of labels": {"label2id": {str(number): number for number in range(100_001)}},
    "vocabulary": {"vocab_size": 2**31 - 1},
    "blocks": {"num_hidden_layers": 10**7},
    "blocks by an old name": {"n_layer": 10**7},
    "heads": {"num_attention_heads": 10**9},
    "heads of keys": {"num_key_value_heads": 10**9},
    "width": {"hidden_size": 2**31 - 1},
    "positions": {"max_position_embeddings": 2**40},
    "experts": {"num_local_experts": 10**8},
    "experts of a token": {"num_experts_per_tok": 10**8},
    "padding": {"pad_token_id": 10**9},
    "padding beyond the vocabulary": {"vocab_size": 320, "pad_token_id": 320},
    "end": {"eos_token_id": [1, 2**31]},
    "begin": {"bos_token_id": -2},
}


def _gguf(fields: bytes = b"", num_fields: int = 1, num_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_fields) + fields


def _text(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


def _array(kind: int, count: int) -> bytes:
    return struct.pack("<IIQ", 9, kind, count)


_TOKENS = _text(b"tokenizer.ggml.tokens")
_TENS = "{% for b in range(99999) %}"
# Chat templates that do not end, or take all memory, of which some do so in one call of C.
TEMPLATES: Mapping[str, str] = {
    "loops": _TENS * 5 + "{% endfor %}" * 5,
    "doubles": "{% set n = namespace(t='aaaaaaaa') %}{% for i in range(60) %}"
    "{% set n.t = n.t ~ n.t %}{% endfor %}",
    "multiplies": "{{ messages[0].content * 10**11 }}",
    "pads": "{{ '%99999999999d' % (messages | length) }}",
    "powers": "{% set n = namespace(x=messages | length) %}{% for i in range(40) %}"
    "{% set n.x = (n.x + 3) ** 9 %}{% endfor %}",
}
# GGUF files of some bytes that announce far more.
GGUF_FILES: Mapping[str, bytes] = {
    "numbers": _gguf(_TOKENS + _array(0, 2**40)),
    "texts": _gguf(_TOKENS + _array(8, 2**40)),
    "arrays": _gguf(_TOKENS + _array(9, 2**40)),
    "arrays in arrays": _gguf(_TOKENS + _array(9, 1) + struct.pack("<IQ", 9, 1) * 5_000),
    "fields": _gguf(num_fields=2**60),
    "tensors": _gguf(num_fields=0, num_tensors=2**60),
    "a text": _gguf(_text(b"general.name") + struct.pack("<I", 8) + _text(b"x", 2**63)),
    "a key": _gguf(_text(b"x", 2**63)),
    "blocks": _gguf(_text(b"llama.block_count") + struct.pack("<II", 4, 10**9)),
    "vocabulary": _gguf(_text(b"llama.vocab_size") + struct.pack("<II", 4, 2**31)),
    "dimensions": _gguf(_text(b"w") + struct.pack("<I", 2**31) + bytes(99), 0, 1),
    "another byte order": b"GGUF" + struct.pack(">IQQ", 3, 2**60, 0),
    "nothing": b"",
}


def limited(code: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python code in a process that an attack cannot let grow beyond the machine."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        preexec_fn=_limit,
        capture_output=True,
        text=True,
        check=False,
        timeout=4 * LIMIT_S,
    )


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S))


def write_changed(source: Path, directory: Path, name: str, changes: Mapping[str, Any]) -> Path:
    """A copy of a folder by links, with some fields of one JSON file changed."""
    directory.mkdir()
    for file in source.iterdir():
        if file.name != name:
            (directory / file.name).hardlink_to(file)
    fields = json.loads((source / name).read_text())
    (directory / name).write_text(json.dumps({**fields, **changes}))
    return directory


def tokenizers() -> dict[str, dict[str, Any]]:
    """Changed fields of a ``tokenizer.json``, each of which would take memory or all tokens."""
    ids = [1] * 5_000
    special = {"<s>": {"id": "<s>", "ids": ids, "tokens": ["<s>"] * len(ids)}}
    many = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * 200_000,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": special,
    }
    padding = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"}
    return {
        "nested replacements": {"normalizer": _replaced([("a", "a" * 1_000)] * 5)},
        "of a rare letter": {"normalizer": _replaced([("☃", "☃" * 1_000)] * 5)},
        "of nothing": {"normalizer": _replaced([("x*", "y" * 1_000)] * 4, "Regex")},
        "of an output": {"decoder": _replaced([("a", "a" * 1_000)] * 5, key="decoders")},
        "many tokens": {"post_processor": many},
        "padding": {
            "padding": {**padding, "strategy": {"Fixed": 10**9}, "pad_to_multiple_of": None}
        },
        "padding to a multiple": {
            "padding": {**padding, "strategy": "BatchLongest", "pad_to_multiple_of": 10**9}
        },
        "truncation": {
            "truncation": {
                "direction": "Right",
                "max_length": 0,
                "strategy": "LongestFirst",
                "stride": 0,
            }
        },
        "prepended": {"normalizer": {"type": "Prepend", "prepend": "a" * 10**6}},
    }


def _replaced(
    pairs: list[tuple[str, str]], kind: str = "String", key: str = "normalizers"
) -> dict[str, Any]:
    rules = [
        {"type": "Replace", "pattern": {kind: before}, "content": after} for before, after in pairs
    ]
    return {"type": "Sequence", key: rules}
