"""A process: signals, limits, its end with its parent, full disks, and bars of its libraries.

Commands and workers use it. It knows neither models nor jobs.
"""

import ctypes
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from pathlib import Path

# of a disk, a quota, and a file system or a process that allows no larger file
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PR_SET_PDEATHSIG = 1


def hide_gguf_bar() -> None:
    """Turn off the progress bar with which transformers converts GGUF files."""
    _hide_bars("transformers.modeling_gguf_pytorch_utils")


def hide_compressed_tensors_bars() -> None:
    """Turn off the progress bars of compressed-tensors. Raises ``ImportError`` without it."""
    _hide_bars(
        "compressed_tensors.compressors.model_compressors.model_compressor",
        "compressed_tensors.offload.dispatch",
        "compressed_tensors.quantization.lifecycle.apply",
    )


def _hide_bars(*modules: str) -> None:
    """Give modules the bars of transformers, which are off, in place of tqdm's.

    Tqdm's ignore the setting that turns off all others, and break lines in narrow terminals.
    """
    from transformers.utils import logging as bars  # noqa: PLC0415 - takes seconds

    bars.disable_progress_bar()
    for name in modules:
        setattr(import_module(name), "tqdm", bars.tqdm)  # noqa: B010 - mypy knows no such attribute


@contextmanager
def deferred_signal(signum: signal.Signals) -> Iterator[Callable[[], bool]]:
    """Within the context, a signal only sets a flag; yields a function that reads the flag.

    Works in the main thread only.
    """
    is_received = False

    def receive(*_: object) -> None:
        nonlocal is_received
        is_received = True

    with _handled_by(receive, signum):
        yield lambda: is_received


def exit_on(signum: signal.Signals) -> AbstractContextManager[None]:
    """Within the context, a signal raises ``SystemExit``, so that what is half done is removed.

    The exit code is that of a process which the signal has killed. Works in the main thread only.
    """
    return _handled_by(lambda *_: sys.exit(128 + signum), signum)


@contextmanager
def _handled_by(handler: Callable[..., object], signum: signal.Signals) -> Iterator[None]:
    before = signal.signal(signum, handler)
    try:
        yield
    finally:
        signal.signal(signum, before)


def end_with_parent(parent: int, signum: signal.Signals) -> None:
    """Have Linux send this process a signal when its parent ends. Elsewhere it does nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent:
        os._exit(1)  # the parent ended before the call


def be_killed_first() -> None:
    """Have Linux end this process, and not the service, where memory runs out (proc(5))."""
    with suppress(OSError):  # of a system without it
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def fork_and_do(work: Callable[[], None]) -> int:
    """Do ``work`` in a fork that ends after it and with this process. Returns its process id."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        end_with_parent(parent, signal.SIGKILL)
        work()
        os._exit(0)
    finally:
        os._exit(1)  # never back to the loop of the parent


def limit_memory(num_bytes: int) -> None:
    """Have the kernel refuse this process more memory than what it has and so many bytes.

    What it prints at its end is dropped, and no core is written.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with suppress(OSError):  # of a system without it
        num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = num_pages * resource.getpagesize() + num_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def limit_time(cpu_s: float, real_s: float) -> None:
    """Have the kernel end this process after so many seconds of processors, or of all clocks.

    0 lifts the limits.
    """
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    signal.setitimer(signal.ITIMER_REAL, real_s)


def took_longer(status: int) -> bool:
    """Whether a process with this status of ``waitpid`` was ended by ``limit_time``."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)


def lower_priority(niceness: int) -> None:
    """Have other processes go first.

    Where Linux shares the processors by session, the niceness of the session counts as well.
    """
    os.nice(niceness)
    if os.getsid(0) == os.getpid():  # not that of others
        with suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(niceness), encoding="ascii")
