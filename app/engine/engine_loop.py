"""The thread that steps the engine: live requests first, then other work, the timing of kernels,
and background requests.

A live request waits for at most one increment of other work, or one block of a background step.
"""

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from app.engine.engine import Engine, EngineStats
from app.engine.scheduling.sequence import FinishReason, Request, TokenEvent
from app.engine.step import NEVER, Interruption, StepInterrupted

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_JOIN_S = 10.0  # for the last step when the engine stops
_WAKE = object()  # a command to look for something to do


@dataclass(frozen=True, eq=False)
class Work(Generic[_Result]):
    """Other work for the engine's thread, in increments. Cancelling the future ends it."""

    increments: Generator[None, None, _Result]
    future: "Future[_Result]" = field(default_factory=Future)


@dataclass(frozen=True)
class Cancel:
    request_id: str
    reason: FinishReason


Deliver = Callable[[list[TokenEvent], EngineStats, float], None]  # and seconds busy with requests


class EngineLoop:
    """Steps an engine, and runs one increment of other work after each step.

    Background requests take steps only without such work. Their steps stop at the next block once
    there is an ``interruption``.
    """

    def __init__(self, engine: Engine, interruption: Interruption = NEVER) -> None:
        self._engine = engine
        self._interruption = interruption
        self._works: deque[Work[Any]] = deque()

    @property
    def has_work(self) -> bool:
        return self._engine.has_work or bool(self._works)

    def add_work(self, work: Work[Any]) -> None:
        self._engine.preempt()
        self._works.append(work)

    def step(self) -> list[TokenEvent]:
        """Raises as ``Engine.step`` does."""
        warm_up, events = self._engine.kernels.warm_up, list[TokenEvent]()
        if self._engine.has_live_work:
            began_s = time.monotonic()
            events = self._engine.step()
            warm_up.advance_beside(time.monotonic() - began_s)
        elif not self._works and not warm_up.advance():
            return self._background_step()
        self._advance()
        return events

    def _background_step(self) -> list[TokenEvent]:
        """Preempts the request once it is interrupted: on a CPU, a whole step would delay the first
        token of a live request by a quarter."""
        try:
            return self._engine.step(self._interruption) if self._engine.has_work else []
        except StepInterrupted:
            self._engine.preempt()
            return []

    def _advance(self) -> None:
        """Run one increment of the next work. Its exceptions go to its future."""
        if not self._works:
            return
        work = self._works.popleft()
        if work.future.cancelled():
            work.increments.close()
            return
        with suppress(InvalidStateError):  # cancelled in the meantime
            try:
                next(work.increments)
            except StopIteration as end:
                work.future.set_result(end.value)
            except torch.AcceleratorError as error:
                work.future.set_exception(error)
                raise
            except Exception as error:
                logger.exception("work between two steps of the engine failed")
                work.future.set_exception(error)
            else:
                self._works.append(work)


class EngineThread:
    """The thread that steps the engine. Used from one event loop."""

    def __init__(self, engine: Engine) -> None:
        # The end of the last step, or the arrival of work at an idle thread.
        self.moved_s = time.monotonic()
        self._engine = engine
        self._commands: queue.SimpleQueue[Request | Work[Any] | Cancel | object | None] = (
            queue.SimpleQueue()
        )
        self._interruption = Interruption()  # of a background step, by a command
        self._loop = EngineLoop(engine, self._interruption)
        self._has_failed = False
        self._thread: threading.Thread | None = None

    @property
    def is_started(self) -> bool:
        """Whether ``start`` was called; false after ``stop``, even if the thread still runs."""
        return self._thread is not None

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and not self._has_failed

    def start(self, deliver: Deliver, crash: Callable[[], None]) -> None:
        """Start the thread. It calls ``deliver`` after each step, and ``crash`` once it fails.

        Both are called on the running event loop.

        Raises ``RuntimeError`` outside of an event loop or if it runs.
        """
        if self._thread is not None:
            raise RuntimeError("the engine is already started")
        arguments = (asyncio.get_running_loop(), deliver, crash)
        self._thread = threading.Thread(
            target=self._serve, args=arguments, name="engine", daemon=True
        )
        self._thread.start()

    async def stop(self) -> None:
        """Carry out the commands queued so far, then end.

        A thread that is stuck in a step keeps running until the process ends.
        """
        if self._thread is None:
            return
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join, _JOIN_S)
        if self._thread.is_alive():
            logger.error("a step of the engine has not ended within %.0f s", _JOIN_S)
        self._thread = None

    def put(self, command: Request | Work[Any] | Cancel) -> None:
        """Queue a command. Commands are carried out in order, before the next step."""
        self._commands.put(command)
        if not (isinstance(command, Request) and command.is_background):
            self._interruption.set()

    def wake(self) -> None:
        """Let an idle thread look for kernels to time."""
        self._commands.put(_WAKE)

    # The following methods run in the thread, the only one that uses the engine.

    def _serve(
        self, loop: asyncio.AbstractEventLoop, deliver: Deliver, crash: Callable[[], None]
    ) -> None:
        try:
            is_running = True
            while is_running:
                events, is_running = self._run_commands()
                is_busy = self._engine.has_live_work
                events += self._loop.step()
                began_s, self.moved_s = self.moved_s, time.monotonic()
                busy_s = self.moved_s - began_s if is_busy else 0.0
                loop.call_soon_threadsafe(deliver, events, self._engine.stats(), busy_s)
        except Exception:
            self._has_failed = True
            logger.exception("the engine thread has died")
            with suppress(RuntimeError):  # the event loop may be closed
                loop.call_soon_threadsafe(crash)

    def _run_commands(self) -> tuple[list[TokenEvent], bool]:
        """Carry out the queued commands; wait for one while there is no work.

        Returns the last events of cancelled requests, and whether to go on.
        """
        events: list[TokenEvent] = []
        self._interruption.clear()  # before reading the queue, so that no later command is missed
        wait_s: float | None = 0.0
        if not self._loop.has_work:
            self._engine.mend_idle()
            while self._commands.empty() and self._engine.take_ahead():
                pass
            wait_s = self._engine.kernels.warm_up.wait_s
        while wait_s != 0.0 or not self._commands.empty():
            try:
                command = self._commands.get(timeout=wait_s)
            except queue.Empty:
                break
            if wait_s != 0.0:
                wait_s, self.moved_s = 0.0, time.monotonic()
            if command is None:
                return events, False
            events += self._carry_out(command)
        return events, True

    def _carry_out(self, command: object) -> list[TokenEvent]:
        """Returns the last event of a cancelled request."""
        event = None
        if isinstance(command, Request):
            self._engine.add(command)
        elif isinstance(command, Work):
            self._loop.add_work(command)
        elif isinstance(command, Cancel):
            event = self._engine.cancel(command.request_id, command.reason)
        return [] if event is None else [event]
