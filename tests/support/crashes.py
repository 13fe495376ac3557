"""Something that dies, or fails, right before the n-th thing that it asks of the system.

Calls into the modules of the interpreter that talk to the kernel are counted, from any code,
but for those that only look: no step of the code under test can be forgotten. What comes after one
step is before the next.
"""

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import BuiltinFunctionType, FrameType
from typing import Any

_SYSTEM = {"posix", "_io", "fcntl", "socket"}
_LOOKS = {
    *("fspath", "text_encoding", "fileno", "readable", "getpid", "urandom", "register_at_fork"),
    *("stat", "lstat", "fstat", "statvfs", "listdir", "scandir", "is_dir", "__enter__", "close"),
    *("read", "readall", "readinto", "readline", "readlines", "seek", "tell"),
    *("recv", "recv_into", "gettimeout", "settimeout", "setsockopt"),
}


def dies(act: Callable[[], object], step: int) -> bool:
    """Whether ``act``, in a process of its own, was killed before it came to that step.

    It may not raise.
    """
    child = os.fork()
    if child == 0:
        code = 2
        try:
            with _at(step, lambda _function: os.kill(os.getpid(), signal.SIGKILL)):
                act()
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"step {step}: exit code {code}"
    return code != 0


@contextmanager
def fails(error: Exception, step: int) -> Iterator[None]:
    """Raise ``error`` from that step of the body; what follows, as to clean up, succeeds."""

    def fail(function: BuiltinFunctionType) -> None:
        if function.__name__ == "__exit__" and isinstance(file := function.__self__, io.IOBase):
            file.close()  # as it does even where it cannot write the rest
        raise error

    with _at(step, fail):
        yield


@contextmanager
def _at(step: int, happen: Callable[[BuiltinFunctionType], None]) -> Iterator[None]:
    num_steps = 0

    def count(_frame: FrameType, event: str, function: Any) -> None:
        nonlocal num_steps
        if event == "c_call" and _asks_the_system(function):
            num_steps += 1
            if num_steps == step:
                happen(function)

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


def _asks_the_system(function: BuiltinFunctionType) -> bool:
    owner = getattr(function, "__self__", None)
    if function.__name__ in _LOOKS or isinstance(owner, (io.BytesIO, io.StringIO)):
        return False
    return function.__module__ in _SYSTEM or type(owner).__module__ in _SYSTEM
