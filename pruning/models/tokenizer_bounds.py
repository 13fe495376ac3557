"""Bounds of what a ``tokenizer.json`` does to a text.

Tokenizers abort the process where memory runs out, and a rule that matches only some characters is
not found by a sample text. So rules are multiplied instead of tried.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pruning.models.config_bounds import MAX_TOKENIZER_BYTES
from pruning.records import InvalidRecord, read_stored

_MAX_GROWTH = 64  # of a text by all replacements
_MAX_LENGTH = 2**20  # tokens to which texts are filled up
_MAX_ADDED = 4_096  # tokens or characters that are added to each text


def check_tokenizer(path: Path) -> None:
    """Raise ``InvalidRecord`` for a tokenizer whose rules could take all memory.

    What is broken otherwise is left to the library.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        return
    try:
        fields = json.loads(read_stored(file, MAX_TOKENIZER_BYTES))
        _check_lengths(fields)
        for part in ("normalizer", "decoder"):
            _check_growth(part, fields.get(part))
        _check_added(fields.get("post_processor"))
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError, OSError) as error:
        if isinstance(error, InvalidRecord):
            raise


def _check_lengths(fields: Mapping[str, Any]) -> None:
    if (truncation := fields.get("truncation")) and truncation["max_length"] < 1:
        raise InvalidRecord("tokenizer.json: truncation leaves no token, expected 1 at least")
    padding = fields.get("padding") or {}
    strategy = padding.get("strategy")
    lengths = [padding.get("pad_to_multiple_of") or 0]
    lengths += strategy.values() if isinstance(strategy, dict) else ()
    if max(lengths) > _MAX_LENGTH:
        raise InvalidRecord(
            f"tokenizer.json: padding to {max(lengths)} tokens, expected {_MAX_LENGTH} at most"
        )


def _check_growth(where: str, part: object) -> None:
    growth = 1.0
    for rule in _rules(part):
        if rule.get("type") == "Replace":
            growth *= _growth(rule["pattern"], len(rule["content"]))
        if (added := len(rule.get("prepend") or "")) > _MAX_ADDED:
            raise InvalidRecord(
                f"tokenizer.json: {where} adds {added} characters, expected {_MAX_ADDED} at most"
            )
    if growth > _MAX_GROWTH:
        raise InvalidRecord(
            f"tokenizer.json: {where} makes a text {growth:.3g} times as long, expected "
            f"{_MAX_GROWTH} at most"
        )


def _growth(pattern: Mapping[str, str], length: int) -> float:
    """By what factor a replacement can make a text longer. An empty match is everywhere."""
    if (text := pattern.get("String")) is not None:
        return max(1.0, length / len(text)) if text else 1 + length
    try:
        is_empty = re.match(pattern["Regex"], "") is not None
    except re.error:  # of another syntax
        is_empty = True
    return 1 + length if is_empty else max(1, length)


def _check_added(part: object) -> None:
    for rule in _rules(part):
        tokens = rule.get("special_tokens")
        if rule.get("type") != "TemplateProcessing" or not isinstance(tokens, dict):
            continue
        numbers = {name: len(token["ids"]) for name, token in tokens.items()}
        for template in (rule.get("single") or (), rule.get("pair") or ()):
            named = (piece["SpecialToken"]["id"] for piece in template if "SpecialToken" in piece)
            added = sum(numbers.get(name, 0) for name in named)
            if added > _MAX_ADDED:
                raise InvalidRecord(
                    f"tokenizer.json: {added} tokens are added to each text, expected "
                    f"{_MAX_ADDED} at most"
                )


def _rules(part: object) -> Iterator[Mapping[str, Any]]:
    """The part and all that is in it."""
    left = [part]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            yield item
            left += item.values()
        elif isinstance(item, list):
            left += item
