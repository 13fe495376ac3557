"""A process of ``sleb up``, which is started again if it dies."""

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

FIRST_PAUSE_S = 1.0  # before a process is started again; doubled each time
MAX_PAUSE_S = 30.0
STABLE_S = 60.0  # a process that has run for so long gets the first pause again

logger = logging.getLogger(__name__)


class ChildEnded(RuntimeError):
    """A process cannot start, so the others were stopped."""


def _ignore(_pid: int) -> None:
    pass


@dataclass(frozen=True)
class Command:
    """What a child runs. ``is_up`` and ``on_death`` get the id of its process."""

    name: str  # for messages
    line: Sequence[str]
    environment: Mapping[str, str]
    stop_s: float  # after SIGTERM it is killed if it has not ended by then
    is_up: Callable[[int], bool]  # asked until it is true
    on_death: Callable[[int], None] = _ignore


class Child:
    """A process with a session of its own, so that Ctrl-C reaches only its parent."""

    def __init__(self, command: Command) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._was_up = False
        self._start_at_s = self._started_s = -STABLE_S
        self._pause_s = FIRST_PAUSE_S

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def look(self) -> None:
        """Start the process, also if it has died and the pause is over.

        Raises ``ChildEnded`` if it cannot start.
        """
        if self._process is None:
            if time.monotonic() >= self._start_at_s:
                self._start()
        elif (code := self._process.poll()) is not None:
            self._handle_death(self._process.pid, code)
        elif not self._was_up:
            self._was_up = self._command.is_up(self._process.pid)

    def _start(self) -> None:
        self._started_s = time.monotonic()
        try:
            self._process = subprocess.Popen(  # noqa: S603 - an own command
                self._command.line, env=self._command.environment, start_new_session=True
            )
        except OSError as error:  # no memory or no process is left
            self._start_later(str(error))

    def _handle_death(self, pid: int, code: int) -> None:
        """Only SIGKILL, which the kernel sends without memory, may end it before it was up."""
        end = f"exit code {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"
        if not self._was_up and code != -signal.SIGKILL:
            raise ChildEnded(f"the {self._command.name} cannot start ({end}): see its output above")
        self._process = None
        self._command.on_death(pid)
        self._start_later(end)

    def _start_later(self, reason: str) -> None:
        if time.monotonic() - self._started_s >= STABLE_S:
            self._pause_s = FIRST_PAUSE_S
        self._start_at_s = time.monotonic() + self._pause_s
        message = "the %s has died (%s) and is started again in %g s"
        logger.error(message, self._command.name, reason, self._pause_s)
        self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)

    def stop(self) -> None:
        """Terminate the process, and kill it if it does not end in time."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(self._command.stop_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
