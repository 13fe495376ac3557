"""``sleb up``: the embedded Valkey, one worker and the API, started and stopped together."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType

from app.auth.scopes import check_address
from app.config import ServeSettings
from app.server.valkey import redis_url
from pruning.config import child_environment
from pruning.process import end_with_parent

GRACE_S = 15.0  # after its drain, a child that is still alive is killed


class ChildEnded(RuntimeError):
    """A process ended unexpectedly, so the others were stopped."""


def run_up(settings: ServeSettings) -> None:
    """Run until SIGTERM, Ctrl-C or the end of any child.

    Raises ``ChildEnded`` or ``UnprotectedAddress``.
    """
    check_address(settings)
    stop = threading.Event()
    with redis_url(settings), _signals(stop):
        environment = child_environment(settings)  # each child holds the embedded Valkey itself
        with (
            _child("worker", environment, GRACE_S) as worker,
            _child("serve", environment, settings.drain_s + GRACE_S) as api,
        ):
            _watch([worker, api], stop)


def _watch(children: Sequence["subprocess.Popen[bytes]"], stop: threading.Event) -> None:
    while not stop.wait(0.2):
        for child in children:
            if (code := child.poll()) is not None:
                raise ChildEnded(f"a process ended with code {code}: see its output above")


@contextmanager
def _child(
    command: str, environment: dict[str, str], timeout_s: float
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in its own session, so that only this process passes Ctrl-C on to it."""
    child = subprocess.Popen(  # noqa: S603 - an own command
        [sys.executable, "-m", "app", command],
        env=environment,
        start_new_session=True,
        preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - no threads here
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set ``stop`` instead of ending the process without cleanup."""

    def handle(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
