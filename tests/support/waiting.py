"""Waiting for a condition, where a sleep would be either too short or too long."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

_Value = TypeVar("_Value")

LIMIT_S = 100.0  # long enough on a machine that is busy and slow


def wait_until(
    predicate: Callable[[], _Value], description: str, timeout_s: float = LIMIT_S
) -> _Value:
    """The first true value of ``predicate``; fails the test with ``description`` if none comes."""
    deadline = time.monotonic() + timeout_s
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:g} s still not: {description}")
        threading.Event().wait(0.02)
    return value
