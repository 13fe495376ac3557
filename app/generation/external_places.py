"""Who may ask another server now, who waits here for that, and who is refused.

Counts and durations only: what is asked, and by whom, is not known here.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.engine.admission import Overloaded, TooManyPrompts

_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0
_FADE = 0.9  # of the mean duration, with each answer


class Places:
    """So many at once on the other server, and so many more here, first come first served."""

    def __init__(self, max_running: int, max_waiting: int) -> None:
        self._max_running = max_running
        self._max_open = max_running + max_waiting
        self._free = asyncio.Semaphore(max_running)
        self._num_open = 0
        self._mean_s = 0.0
        self.num_running = 0

    @property
    def num_waiting(self) -> int:
        return self._num_open - self.num_running

    @property
    def retry_after_s(self) -> float:
        """How long those who wait will take, if they take as long as others of late."""
        rounds = math.ceil(self.num_waiting / self._max_running)
        return min(max(rounds * self._mean_s, _MIN_RETRY_S), _MAX_RETRY_S)

    def admit(self, num_requests: int) -> None:
        """Let all of them in or none; each has to ``leave``.

        Raises ``TooManyPrompts`` or ``Overloaded``.
        """
        if num_requests > self._max_open:
            raise TooManyPrompts(
                f"{num_requests} answers in one request: this model takes {self._max_open} at "
                f"most, running and waiting; ask for fewer at once"
            )
        if self._num_open + num_requests > self._max_open:
            what = f"{self.num_waiting} requests"
            raise Overloaded(what, "queue_full", self.retry_after_s)
        self._num_open += num_requests

    def leave(self) -> None:
        self._num_open -= 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Waits until it may ask the server, and may for as long as this lasts."""
        async with self._free:
            clock = asyncio.get_running_loop().time
            began_s = clock()
            self.num_running += 1
            try:
                yield
            finally:
                self.num_running -= 1
                took_s = clock() - began_s
                self._mean_s = _FADE * (self._mean_s or took_s) + (1 - _FADE) * took_s
