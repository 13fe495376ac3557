"""Work of clients that waits for the event loop: a little of it is done in each of its turns.

A thousand clients that come at once would otherwise be handled in one turn, and all others would
wait for its end.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import copy_context


class FairQueue:
    """Calls what is added, ``per_turn`` in a turn of the loop, from one address after the other."""

    def __init__(self, per_turn: int) -> None:
        self._per_turn = per_turn
        self._waiting: dict[str, deque[Callable[[], None]]] = {}
        self._is_planned = False
        self._context = copy_context()  # not that of the request which adds something

    def add(self, address: str, act: Callable[[], None]) -> None:
        self._waiting.setdefault(address, deque()).append(act)
        if not self._is_planned:
            self._plan()

    def _plan(self) -> None:
        self._is_planned = True
        asyncio.get_running_loop().call_soon(self._turn, context=self._context)

    def _turn(self) -> None:
        self._is_planned = False
        for _ in range(self._per_turn):
            if not self._waiting:
                return
            self._next()()
        if self._waiting:
            self._plan()

    def _next(self) -> Callable[[], None]:
        """The oldest of the address whose turn it is, which is then behind all others."""
        address = next(iter(self._waiting))
        acts = self._waiting.pop(address)
        act = acts.popleft()
        if acts:
            self._waiting[address] = acts
        return act
