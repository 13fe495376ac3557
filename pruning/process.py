"""What a process owes others: to say nothing needless, to end when it is asked to, and a child not
to outlive its parent.
"""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1
# transformers imports torchao wherever it is installed, and that says what it misses without CUDA
_CHATTY = ("torchao", "torch.utils._pytree")


def hush_libraries() -> None:
    """For a process's start, in front of torch: let no library warn of what is not in use."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)


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
