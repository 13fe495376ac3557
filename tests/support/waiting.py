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
    begin = time.monotonic()
    while not (value := predicate()):
        waited_s = time.monotonic() - begin
        if waited_s > timeout_s:
            raise AssertionError(f"after {timeout_s:g} s still not: {description}")
        threading.Event().wait(min(0.02 + waited_s / 50, 0.2))  # a long wait asks seldom
    return value
