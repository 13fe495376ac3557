"""Bounds of what a ``config.json`` holds, checked before any library sees the file.

Libraries make lists and dictionaries of the sizes that a config names, under the interpreter's
lock. So one number there could take the memory and the time of all other work.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pruning.records import InvalidRecord, parse_record, read_stored

MAX_BLOCKS = 1_000  # of a dense model
MAX_NUMBER = 2**31 - 1
_MAX_BYTES = 2**22  # of config.json and other small files
MAX_TOKENIZER_BYTES = 2**27
_SMALL = (
    "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
_OF_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json"
)  # fmt: skip
_MAX_SHOWN = 60
_MAX_LABELS = 100_000

# The least and the greatest value of the numbers whose names match.
_BOUNDS: tuple[tuple[re.Pattern[str], int, int], ...] = tuple(
    (re.compile(pattern), least, most)
    for pattern, least, most in (
        (r"_?num_labels", 0, _MAX_LABELS),
        (r"(.*_)?(layers?|blocks?|depth)|n_layer|.*_layers_.*", -MAX_BLOCKS, MAX_BLOCKS),
        (r".*vocab_?size.*", 0, 2**24),
        (r"(.*_)?heads?|.*_heads?_.*", -1, 2**16),
        (r"(.*_)?(num|n)_(.*_)?experts?(_.*)?", -1, 2**12),
        (r".*(hidden|intermediate|embd|inner|ffn|model)_?(size|dim).*|n_embd|d_model", 0, 2**24),
        (r".*(positions?|position_embeddings)|n_ctx", -1, MAX_NUMBER),
    )
)
_LABELS = ("id2label", "label2id")
_TOKENS = re.compile(r"[a-z_]+_token_id")
_NO_TOKEN = -1


def check_config(file: Path) -> None:
    """Raise ``InvalidRecord`` or ``OSError`` for a config that no library should read."""
    for part in _parts(parse_record(read_stored(file, _MAX_BYTES))):
        for field, value in part.items():
            _check_number(field, value)
            if field in _LABELS and isinstance(value, dict | list) and len(value) > _MAX_LABELS:
                raise InvalidRecord(
                    f"{field} has {len(value)} labels, expected {_MAX_LABELS} at most"
                )
        _check_tokens(part)


def check_sizes(path: Path) -> None:
    """Raise ``InvalidRecord`` for a folder with a file that is too large to be what its name says.

    Weights have bounds of their own.
    """
    limits = {
        **dict.fromkeys(_SMALL, _MAX_BYTES),
        **dict.fromkeys(_OF_TOKENIZER, MAX_TOKENIZER_BYTES),
    }
    for name, most in limits.items():
        file = path / name
        if file.is_file() and (num_bytes := file.stat().st_size) > most:
            raise InvalidRecord(f"{name} has {num_bytes} bytes, more than the limit of {most}")


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The config and all objects in it, as those of its towers."""
    left: list[Any] = [config]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield part
            left += part.values()
        elif isinstance(part, list):
            left += part


def _check_number(field: str, value: object) -> None:
    if type(value) not in (int, float):
        return
    assert isinstance(value, int | float)
    for pattern, least, most in _BOUNDS:
        if pattern.fullmatch(field) and not least <= value <= most:
            raise InvalidRecord(
                f"{field}={str(value)[:_MAX_SHOWN]}, expected a number from {least} to {most}"
            )


def _check_tokens(part: Mapping[str, Any]) -> None:
    """The padding is in the vocabulary, as the embedding has a row for it.

    Other special tokens of published models may be beyond it: nothing is looked up for them.
    """
    size = part.get("vocab_size")
    for field in filter(_TOKENS.fullmatch, part):
        is_row = field == "pad_token_id" and isinstance(size, int)
        most = int(size or 0) - 1 if is_row else MAX_NUMBER
        for token in part[field] if isinstance(part[field], list) else [part[field]]:
            if type(token) is int and not _NO_TOKEN <= token <= most:
                raise InvalidRecord(
                    f"{field}={str(token)[:_MAX_SHOWN]}, expected {_NO_TOKEN} or the id of a token "
                    f"up to {most}"
                )
