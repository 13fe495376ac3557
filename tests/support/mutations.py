"""Records as somebody with write access to a store could leave them: any part is anything."""

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 7, 10**6, 2**63, 10**400, -0.5, 1e308, float("nan"), float("inf"),
    "", "x", "\ud800", "\0", "../../etc/passwd", "a" * 70_000, "<script>", [], [[]], [None], {},
    {"x": 1}, [1, 2, 3], [0, 0], [-1], ["a"], {"": {}},
)  # fmt: skip
TEXTS = ("", "{", "[]", "null", "[" * 200_000, '{"a":' * 100_000, "\0", "NaN", '"x"', "\ufeff{}")


def mutations(record: dict[str, Any], number: int, seed: int = 0) -> Iterator[str]:
    """So many JSON texts, of which each differs from the record in one to three places."""
    yield from TEXTS[:number]
    choose = random.Random(seed)
    for _ in range(number - len(TEXTS)):
        text = json.dumps(changed(record, choose))
        yield text[: choose.randrange(len(text))] if choose.random() < 0.02 else text


def changed(record: Any, choose: random.Random) -> Any:
    """A copy that differs in one to three places."""
    copied = json.loads(json.dumps(record))
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        _change(copied, choose)
    return copied


def damaged(content: bytes, number: int, size: int, seed: int = 0) -> Iterator[bytes]:
    """So many copies of a binary file, of which each differs in its first ``size`` bytes."""
    choose = random.Random(seed)
    for _ in range(number):
        copied = bytearray(content)
        for _ in range(choose.choice((1, 1, 2, 3))):
            at = choose.randrange(min(size, len(content)))
            value = choose.choice((0, 1, 9, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1))
            width = choose.choice((1, 4, 8))
            copied[at : at + width] = (value % 256**width).to_bytes(width, "little")
        yield bytes(copied[: choose.randrange(len(copied))] if choose.random() < 0.05 else copied)


def _change(record: Any, choose: random.Random) -> None:
    """Replace, remove or add something somewhere in the record."""
    places = list(_places(record))
    if not places:
        return
    container, key = choose.choice(places)
    kind = choose.random()
    if kind < 0.8:
        container[key] = deepcopy(choose.choice(VALUES))
    elif kind < 0.9:
        del container[key]
    elif isinstance(container, dict):
        container[choose.choice(("unknown", "", "\ud800", "__class__"))] = deepcopy(
            choose.choice(VALUES)
        )
    else:
        container.append(deepcopy(choose.choice(VALUES)))


def _places(part: Any) -> Iterator[tuple[Any, Any]]:
    items = part.items() if isinstance(part, dict) else enumerate(part)
    for key, value in items:
        yield part, key
        if isinstance(value, dict | list):
            yield from _places(value)
