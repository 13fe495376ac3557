"""What a child process owes its parent: not to outlive it, and to end when it is asked to."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1


@contextmanager
def heeding(signum: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Meanwhile the signal ends nothing: what is yielded tells whether it has come.

    In the main thread only.
    """
    has_come = False

    def note(*_: object) -> None:
        nonlocal has_come
        has_come = True

    before = signal.signal(signum, note)
    try:
        yield lambda: has_come
    finally:
        signal.signal(signum, before)


def end_with_parent(parent: int, how: signal.Signals) -> None:
    """Ask Linux to send this process a signal when its parent dies; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)
    if os.getppid() != parent:
        os._exit(1)  # it died before we asked
