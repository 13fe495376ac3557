"""Whose turn it is in the engine's thread: requests, then other work, then the background.

Runs in that thread alone. A request waits for the piece of work that has begun, and for no second
one; of the background, for the block that has begun.
"""

import logging
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import torch

from app.engine.engine import Engine
from app.engine.kv_cache import never
from app.engine.sequence import FinishReason, Request, TokenEvent

logger = logging.getLogger(__name__)

BACKGROUND_CHUNK = 64  # prompt tokens of one background forward: what may have to be repeated

_Result = TypeVar("_Result")


@dataclass(frozen=True, eq=False)
class Work(Generic[_Result]):
    """Something else for the engine's thread, piece by piece; to cancel its future ends it."""

    pieces: Generator[None, None, _Result]
    future: "Future[_Result]" = field(default_factory=Future)


class Turns:
    """An engine, work that takes a piece after each of its steps, and a second engine, which takes
    steps only while there is nothing else: one sequence at a time, in slots and caches of its own.

    ``is_wanted`` tells in the middle of such a step whether something else has come.
    """

    def __init__(self, engine: Engine, is_wanted: Callable[[], bool] = never) -> None:
        limits = engine.limits
        chunk = min(BACKGROUND_CHUNK, limits.max_batch_tokens)
        self._engine = engine
        limits = replace(limits, max_num_seqs=1, max_batch_tokens=chunk)
        self._background = Engine(limits, gives_way=is_wanted)
        self._works: deque[Work[Any]] = deque()

    @property
    def has_work(self) -> bool:
        return self._engine.has_work or self._background.has_work or bool(self._works)

    @property
    def has_requests(self) -> bool:
        """Whether the next step is one of the engine itself."""
        return self._engine.has_work

    def add(self, request: Request) -> None:
        engine = self._background if request.is_background else self._engine
        engine.add(request)

    def add_work(self, work: Work[Any]) -> None:
        self._works.append(work)

    def cancel(self, request_id: str, reason: FinishReason) -> TokenEvent | None:
        """End a request of either kind now; None if there is no such request."""
        return self._engine.cancel(request_id, reason) or self._background.cancel(
            request_id, reason
        )

    def step(self) -> list[TokenEvent]:
        """Raises as ``Engine.step`` does."""
        is_busy = self._engine.has_work or bool(self._works)
        if not is_busy:
            return self._background.step()
        events = self._engine.step()
        self._advance()
        return events

    def check_integrity(self) -> None:
        """Raise ``AssertionError`` unless both engines are consistent."""
        self._engine.check_integrity()
        self._background.check_integrity()

    def _advance(self) -> None:
        """One piece of the work whose turn it is; what it raises is told whoever waits for it."""
        if not self._works:
            return
        work = self._works.popleft()
        if work.future.cancelled():
            work.pieces.close()
            return
        with suppress(InvalidStateError):  # cancelled just now
            try:
                next(work.pieces)
            except StopIteration as end:
                work.future.set_result(end.value)
            except torch.AcceleratorError as error:
                work.future.set_exception(error)
                raise
            except Exception as error:
                logger.exception("work between the engine's steps has failed")
                work.future.set_exception(error)
            else:
                self._works.append(work)
