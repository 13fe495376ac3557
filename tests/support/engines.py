"""Engines that stop or fail where a test wants them to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import TokenEvent
from app.engine.step import NEVER, Interruption


class GatedEngine(Engine):
    """Does a number of steps, and further ones only while its gate is open."""

    def __init__(self, num_free: int = 0, max_num_seqs: int = 8) -> None:
        super().__init__(EngineLimits(max_num_seqs=max_num_seqs))
        self.gate = threading.Event()
        self.is_at_gate = False
        self.num_steps = 0
        self.close_after(num_free)

    def close_after(self, num_steps: int) -> None:
        self._last_free = self.num_steps + num_steps
        self.gate.clear()

    def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
        if self.num_steps >= self._last_free:
            self.is_at_gate = True
            self.gate.wait()
            self.is_at_gate = False
        self.num_steps += self.has_work
        return super().step(interruption)


@contextmanager
def gated(num_free: int = 0, max_num_seqs: int = 8) -> Iterator[GatedEngine]:
    """Opens the gate at the end: the engine's thread could not be stopped otherwise."""
    engine = GatedEngine(num_free, max_num_seqs)
    try:
        yield engine
    finally:
        engine.gate.set()


class FailingEngine(Engine):
    """Does some forwards, and then none of them succeeds any more."""

    def __init__(self, num_good: int) -> None:
        super().__init__(EngineLimits(max_num_seqs=8))
        self._num_good = num_good

    def _run(self, *args: Any) -> Any:
        self._num_good -= 1
        if self._num_good < 0:
            raise RuntimeError("out of memory, say")
        return super()._run(*args)


class CrashingEngine(Engine):
    """Does some steps, and then its thread dies."""

    def __init__(self, num_good: int) -> None:
        super().__init__(EngineLimits(max_num_seqs=8))
        self._num_good = num_good

    def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
        self._num_good -= self.has_work
        if self._num_good < 0:
            raise RuntimeError("a defect")
        return super().step(interruption)
