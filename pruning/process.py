"""Signals of a process, its end with its parent, and its libraries' progress bars.

Commands and workers use it. It knows neither models nor jobs.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_PR_SET_PDEATHSIG = 1


def hide_gguf_bar() -> None:
    """Turn off the progress bar with which transformers converts GGUF files.

    It ignores the setting that turns off all others, and breaks its lines in narrow terminals.
    """
    from transformers import modeling_gguf_pytorch_utils as module  # noqa: PLC0415 - takes seconds
    from transformers.utils import logging as bars  # noqa: PLC0415 - as above

    bars.disable_progress_bar()
    setattr(module, "tqdm", bars.tqdm)  # noqa: B010 - mypy knows no such attribute


@contextmanager
def deferred_signal(signum: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Within the context, a signal only sets a flag; yields a function that reads the flag.

    Works in the main thread only.
    """
    is_received = False

    def receive(*_: object) -> None:
        nonlocal is_received
        is_received = True

    before = signal.signal(signum, receive)
    try:
        yield lambda: is_received
    finally:
        signal.signal(signum, before)


def end_with_parent(parent: int, signum: signal.Signals) -> None:
    """Have Linux send this process a signal when its parent ends. Elsewhere it does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os._exit(1)  # the parent ended before the call
