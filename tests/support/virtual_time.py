"""An event loop whose clock jumps to the next timer when there is nothing to do."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

_Result = TypeVar("_Result")


class _Selector(selectors.SelectSelector):
    """Adds the time that it should wait to ``now_s``, and does not wait."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen"
        self.now_s += max(timeout, 0.0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now_s

    def spend(self, seconds: float) -> None:
        self._clock.now_s += seconds


def run(work: Coroutine[Any, Any, _Result]) -> _Result:
    """As ``asyncio.run``, with virtual time: for work that waits for timers alone."""
    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(work)


def spend(seconds: float) -> None:
    """Take so long without waiting, as work does that holds the thread."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, _Loop)
    loop.spend(seconds)
