"""Waiting for a condition, where a sleep would be either too short or too long."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

_Value = TypeVar("_Value")


def wait_until(
    predicate: Callable[[], _Value], description: str, timeout_s: float = 100.0
) -> _Value:
    """The first true value of ``predicate``; fails the test with ``description`` if none comes."""
    deadline = time.monotonic() + timeout_s
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:g} s still not: {description}")
        threading.Event().wait(0.02)
    return value
