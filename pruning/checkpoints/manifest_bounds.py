"""Bounds of the lengths in a manifest, which somebody else may have written."""

from collections.abc import Mapping
from typing import Any

from pruning.models.config_bounds import MAX_BLOCKS
from pruning.records import InvalidRecord

_BY_DEPTH = ("removed_blocks", "quality", "repair")  # what grows with the blocks of the model
_MIN_ITEMS = 1_000  # as of texts and domains, however few blocks there are


def check_lengths(data: Mapping[str, Any]) -> None:
    """Raise ``InvalidRecord`` for more than the model has blocks for, before any of it is read."""
    num_blocks = data["num_blocks"]
    if type(num_blocks) is not int or not 1 <= num_blocks <= MAX_BLOCKS:
        raise InvalidRecord(f"num_blocks: expected a number from 1 to {MAX_BLOCKS}")
    most = max(num_blocks + 1, _MIN_ITEMS)
    left = [(name, data.get(name)) for name in _BY_DEPTH]
    while left:
        where, part = left.pop()
        if not isinstance(part, dict | list):
            continue
        if len(part) > most:
            raise InvalidRecord(f"{where}: {len(part)} values, expected {most} at most")
        items = part.items() if isinstance(part, dict) else enumerate(part)
        left += [(f"{where}.{key}", item) for key, item in items]
