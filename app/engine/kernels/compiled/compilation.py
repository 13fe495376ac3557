"""Compile in another process, so that this one can answer meanwhile with torch's operations.

A thread would hold the interpreter's lock, for which every operation of a step would wait.
"""

import atexit
import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from threading import Condition, Event, Thread

import numba
from numba.core.errors import NumbaError

from app.engine.kernels.compiled.openmp import (
    ParallelFunction,
    compile_now,
    compiled_folder,
    has_openmp,
    keep_compiled_in,
)
from pruning.process import be_killed_first, end_with_parent
from pruning.records import check_record, check_time, parse_record, read_stored, replace_file

logger = logging.getLogger(__name__)

_NICENESS = 10  # below that of a service, above that of a pruning job
_RETRY_S = (10.0, 60.0, 300.0, 1800.0)  # after the first failure, the second …
_STATE_FILE = "state.json"
_changed = Condition()  # of what is claimed, ready or has failed


@dataclass(frozen=True)
class CompilationState:
    """The last attempt to compile: ``state`` is compiling, compiled or failed."""

    state: str
    reason: str = ""  # of a failure
    retry_at: float | None = None  # seconds since the epoch; None if it is not tried again


def compile_beside(functions: Sequence[ParallelFunction]) -> None:
    """Make these ready in the background: read them where they are kept, and otherwise have
    another process compile them.

    A failure is tried again after a while. Until they are ready, steps run torch's operations.
    """
    if not has_openmp():
        return
    with _changed:
        missing = [each for each in functions if not (each.is_ready or each.is_claimed)]
        for each in missing:
            each.is_claimed = True
    if missing:
        # The process ends with the thread that has started it, or with this process.
        Thread(target=_make_ready, args=(missing,), name="compilation", daemon=True).start()


def wait_for_compilation(functions: Sequence[ParallelFunction], limit_s: float) -> None:
    """Wait until none of these is awaited, which may be because they have failed."""
    with _changed:
        _changed.wait_for(lambda: not any(each.is_awaited for each in functions), limit_s)


def kept_state(directory: Path) -> CompilationState | None:
    """How the last attempt to compile into this directory ended; None before the first."""
    try:
        state = CompilationState(
            **parse_record(read_stored(compiled_folder(directory) / _STATE_FILE))
        )
        check_record(state)
        check_time("retry_at", state.retry_at)
        return state
    except (OSError, ValueError, TypeError):
        return None


def _make_ready(functions: Sequence[ParallelFunction]) -> None:
    if not numba.config.CACHE_DIR:
        with suppress(OSError):  # the process has no directory that it may write to
            folder = mkdtemp(prefix="sleb-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            keep_compiled_in(Path(folder))
    never = Event()  # a wait that ends with the process, as this thread does
    for wait_s in (*_RETRY_S, None):
        reason = _attempt(functions)
        if reason is not None:
            _note_failure(reason, wait_s)
        with _changed:
            for each in functions:
                each.has_failed = not each.is_ready
            _changed.notify_all()
        if reason is None:
            # Compiled code has so many objects that each later collection would stop all steps.
            gc.collect()
            gc.freeze()
        if reason is None or wait_s is None:
            return
        never.wait(wait_s)


def _note_failure(reason: str, wait_s: float | None) -> None:
    again = "not retried" if wait_s is None else f"next attempt in {wait_s:.0f} s"
    logger.warning(
        "using torch's operations instead of compiled ones, because compilation failed: %s (%s)",
        reason,
        again,
    )
    retry_at = None if wait_s is None else time.time() + wait_s
    _write_state(CompilationState("failed", reason, retry_at))


def _attempt(functions: Sequence[ParallelFunction]) -> str | None:
    """Try to make them ready. Returns the reason of a failure."""
    began_s = time.monotonic()
    missing = [each for each in functions if not each.is_kept]
    reason = ""
    if missing:
        _write_state(CompilationState("compiling"))
        reason = _compile(missing)
    for each in functions:
        if each.is_kept:
            with suppress(NumbaError):
                each.load()
    if not all(each.is_ready for each in functions):
        return reason or "compiled code cannot be read"
    if missing:
        logger.info("compiled the blocks of models in %.1f s", time.monotonic() - began_s)
        _write_state(CompilationState("compiled"))
    return None


def _compile(functions: Sequence[ParallelFunction]) -> str:
    """Have another process compile them. Returns what it wrote to its standard error."""
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
        return str(error)
    return ended.stderr.strip() or f"exit code {ended.returncode}"


def _write_state(state: CompilationState) -> None:
    with suppress(OSError):  # of a full disk: the log has it too
        content = json.dumps(asdict(state)).encode()
        replace_file(Path(numba.config.CACHE_DIR) / _STATE_FILE, content)


def main(parent: str, directory: str, *names: str) -> None:
    """Compile functions, named as ``module:function``, into a directory."""
    end_with_parent(int(parent), signal.SIGKILL)
    os.nice(_NICENESS)
    be_killed_first()
    numba.config.CACHE_DIR = directory
    for name in names:
        module, _, function = name.partition(":")
        compile_now(getattr(import_module(module), function), keeps=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
