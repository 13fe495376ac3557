"""Kernels that are timed at once, on a clock that may be a test's own."""

import time
from collections.abc import Callable, Iterator

from app.engine.autotuning import Choice, Times, Trial, chosen, timed


class Clock:
    """A clock that stands still until something takes ``seconds``."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def __call__(self) -> float:
        return self._now_s

    def take(self, seconds: float) -> None:
        self._now_s += seconds


def choice_of(trial: Trial, *, clock: Callable[[], float] = time.perf_counter) -> Choice:
    """What a trial chooses."""
    (times,) = _times(trial, clock)
    return chosen(times)


def _times(trial: Trial, clock: Callable[[], float]) -> Iterator[Times]:
    increments = timed(trial, clock)
    while True:
        try:
            next(increments)
        except StopIteration as end:
            yield end.value
            return
