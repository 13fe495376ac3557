"""Compile in another process, so that this one can answer meanwhile with torch's operations.

A thread would hold the interpreter's lock, for which every operation of a step would wait.
"""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from threading import Thread

import numba

from app.engine.compiled.openmp import ParallelFunction, compile_now, has_openmp
from pruning.process import end_with_parent

logger = logging.getLogger(__name__)

_NICENESS = 10  # below that of a service, above that of a pruning job


def compile_beside(functions: Sequence[ParallelFunction]) -> None:
    """Have another process compile those that are not kept, one after the other.

    Each is ready when it is compiled. Where nothing is kept, it is compiled when first needed.
    """
    missing = [
        each
        for each in functions
        if not (each.is_loaded or each.is_kept) and each.compilation is None
    ]
    if not missing or not numba.config.CACHE_DIR or not has_openmp():
        return
    # The process ends with the thread that has started it, or with this process.
    thread = Thread(target=_run, args=(missing,), name="compilation", daemon=True)
    for each in missing:
        each.compilation = thread
    thread.start()


def wait_until_compiled(functions: Sequence[ParallelFunction]) -> None:
    """Wait for the processes that compile these."""
    for each in functions:
        if each.compilation is not None:
            each.compilation.join()


def _run(functions: Sequence[ParallelFunction]) -> None:
    began_s = time.monotonic()
    names = [f"{each.function.__module__}:{each.function.__qualname__}" for each in functions]
    try:
        ended = subprocess.run(  # noqa: S603 - this module
            [sys.executable, "-m", __name__, str(os.getpid()), numba.config.CACHE_DIR, *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    except OSError as error:  # no process can be started
        reason = str(error)
    else:
        reason = ended.stderr.strip() or f"exit code {ended.returncode}"
    if all(each.is_kept for each in functions):
        logger.info("the blocks of models were compiled in %.1f s", time.monotonic() - began_s)
        return
    logger.warning(
        "torch's operations are used instead of compiled ones: compiling broke off: %s", reason
    )


def main(parent: str, directory: str, *names: str) -> None:
    """Compile functions, named as ``module:function``, into a directory."""
    end_with_parent(int(parent), signal.SIGKILL)
    os.nice(_NICENESS)
    _be_killed_first()
    numba.config.CACHE_DIR = directory
    for name in names:
        module, _, function = name.partition(":")
        compile_now(getattr(import_module(module), function), keeps=True)


def _be_killed_first() -> None:
    """Have Linux end this process, and not the service, where memory runs out (proc(5))."""
    with suppress(OSError):  # of a system without it
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


if __name__ == "__main__":
    main(*sys.argv[1:])
