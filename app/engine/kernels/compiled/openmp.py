"""Functions compiled by numba, run by the OpenMP threads that torch has already.

A second pool of threads would wait for work beside torch's, on the same cores. So a function is
called through the interface of libgomp, which torch loads: every thread runs the whole function,
takes its own share of the work, and meets the others at barriers.

Compiled functions are kept in files, each with its digest beside it: numba runs what they hold
unseen, so one damaged byte could end the process. This guards against damage; against other users,
only the rights of the folder do.
"""

import ctypes
import hashlib
import logging
import os
import stat
import sys
from collections.abc import Callable, Mapping
from functools import cache, wraps
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from llvmlite import ir
from llvmlite.binding import get_host_cpu_features, get_host_cpu_name
from numba import types
from numba.core.errors import NumbaError
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from app.engine.autotuning import versions_digest
from app.engine.cache.pages import PAGE_TOKENS
from pruning.records import read_stored, replace_file

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
MAX_ROOM_BYTES = 2**28  # for what the threads of one call write beside its results
_DIGEST = ".sha256"
_MAX_KEPT_BYTES = 2**28  # of a file
_Function = TypeVar("_Function", bound=Callable[..., Any])
_Result = TypeVar("_Result")

# Sums may be reordered, or they could not be computed by vectors. Infinities and NaN stay right.
_FAST = {"reassoc", "contract", "nsz", "arcp"}
# Only compiled code calls them. A wrapper for C of each would take a tenth of the time to compile.
_INNER: Mapping[str, Any] = {
    "fastmath": _FAST,
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
}

get_thread: Callable[[], int] = types.ExternalFunction("omp_get_thread_num", types.int32())
get_num_threads: Callable[[], int] = types.ExternalFunction("omp_get_num_threads", types.int32())
barrier: Callable[[], None] = types.ExternalFunction("GOMP_barrier", types.void())


def compiled(function: _Function) -> _Function:
    """A function for other compiled ones to call. It is compiled when one of them is."""
    return cast("_Function", numba.njit(**_INNER)(function))


def inlined(function: _Function) -> _Function:
    """The same for one that is called at one place, of which it becomes a part. numba would compile
    it by itself as well, with all that it calls, which takes half a second."""
    return cast("_Function", numba.njit(**_INNER, inline="always")(function))


def by_type(form: Callable[..., Callable[..., _Result]]) -> Callable[..., _Result]:
    """A function for compiled ones, from what returns its form for the types of arguments."""

    @wraps(form)
    def function(*_arguments: object) -> _Result:
        raise NotImplementedError(f"{form.__name__} runs in compiled code only")

    overload(function, strict=False, inline="always")(form)
    return function


@compiled
def share(number: int) -> Any:
    """This thread's part of a range: where it begins and ends."""
    thread, num_threads = get_thread(), get_num_threads()
    return thread * number // num_threads, (thread + 1) * number // num_threads


def _take(_typing: Any, _address: Any) -> Any:
    def make(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        counter = builder.inttoptr(values[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.IntType(64)(1), "monotonic")

    return types.int64(types.int64), make


# The number of an int64 at an address, which is one more for the next thread that takes it.
take = cast("Callable[[int], int]", intrinsic(_take))


def pointer_to(dtype: types.Type) -> Callable[[int], Any]:
    """A compiled function from an address to a pointer to this type."""
    target = types.CPointer(dtype)

    def pointer(_context: Any, _address: Any) -> Any:
        def make(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(target))

        return target(types.int64), make

    return cast("Callable[[int], Any]", intrinsic(pointer))


class ParallelFunction:
    """A function of one address, which all threads run, once it is loaded."""

    def __init__(self, function: Callable[[int], None]) -> None:
        self.function = function
        self.is_claimed = False  # by a thread that makes it ready, or tries to
        self.has_failed = False  # at least once
        self._lock = Lock()
        self._compiled: Any = None
        self._address: ctypes.c_void_p | None = None

    def __call__(self, address: int) -> None:
        """Run it on as many threads as torch uses, with the address of what it works on.

        It must be ready.
        """
        assert self._address is not None
        _gomp().GOMP_parallel(
            self._address, ctypes.c_void_p(address), ctypes.c_uint(torch.get_num_threads()), 0
        )

    @property
    def is_ready(self) -> bool:
        """Whether it can be called."""
        return self._address is not None

    @property
    def is_awaited(self) -> bool:
        """Whether it will soon be ready, unless that fails."""
        return self.is_claimed and not (self.is_ready or self.has_failed)

    @property
    def is_kept(self) -> bool:
        """Whether it was compiled into the directory of ``keep_compiled_in``, and is whole."""
        files = _files(self.function)
        return any(file.suffix == ".nbc" for file in files) and all(map(_is_whole, files))

    def load(self) -> None:
        """Read it where it is kept, or compile it, which takes seconds.

        Raises ``NumbaError`` for a processor or a version that numba cannot compile for.
        """
        with self._lock:
            if self._address is None and has_openmp():
                load = _kept if numba.config.CACHE_DIR else compile_now
                self._compiled = load(self.function)
                self._address = ctypes.c_void_p(self._compiled.address)


def _kept(function: Callable[[int], None]) -> Any:
    try:
        return compile_now(function, keeps=True)
    except NumbaError:
        raise
    except Exception:  # whatever a damaged file or a full disk leads to
        logger.warning("compiled functions cannot be kept or read", exc_info=True)
        return compile_now(function)


def compile_now(function: Callable[[int], None], *, keeps: bool = False) -> Any:
    """The compiled function. Raises ``NumbaError``, or any error of a directory that keeps it."""
    if keeps:
        _remove_damaged(function)
    callback = numba.cfunc(types.void(types.int64), error_model="numpy", cache=keeps)(function)
    if keeps:
        _note_digests(function)
    return callback


def _remove_damaged(function: Callable[..., Any]) -> None:
    """Remove its files if one of them is damaged, so that it is compiled again."""
    files = _files(function)
    if damaged := [file.name for file in files if not _is_whole(file)]:
        logger.warning("damaged files are compiled again: %s", ", ".join(damaged))
        for file in files:
            _digest_file(file).unlink(missing_ok=True)
            file.unlink(missing_ok=True)


def _note_digests(function: Callable[..., Any]) -> None:
    """Write the digests of the files that it was just compiled into, behind ``_remove_damaged``.

    Raises ``OSError``.
    """
    for file in _files(function):
        if not _is_whole(file):
            replace_file(_digest_file(file), _digest(file).encode())


def _files(function: Callable[..., Any]) -> list[Path]:
    if not numba.config.CACHE_DIR:
        return []
    name = f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}-*.nb[ci]"
    return sorted(Path(numba.config.CACHE_DIR).rglob(name))


def _is_whole(file: Path) -> bool:
    try:
        return read_stored(_digest_file(file)) == _digest(file).encode()
    except OSError:
        return False


def _digest(file: Path) -> str:
    return hashlib.sha256(read_stored(file, _MAX_KEPT_BYTES)).hexdigest()


def _digest_file(file: Path) -> Path:
    return file.with_name(file.name + _DIGEST)


def has_openmp() -> bool:
    """Whether torch runs on an OpenMP with the interface of libgomp, as on Linux."""
    if sys.platform == "win32":  # where there is no library of all symbols
        return False
    return hasattr(_gomp(), "GOMP_parallel") and hasattr(_gomp(), "GOMP_barrier")


@cache
def _gomp() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def keep_compiled_in(directory: Path) -> None:
    """Keep what this process compiles from now on, in a directory that others may share.

    numba reads what is kept by pickle, so a directory that others can write is not used. It looks
    at the file of a function alone, and not at those of what it calls. So each version of the
    source, of Python and of the compiler has a folder, on each processor.
    """
    folder = compiled_folder(directory)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(folder)
        with TemporaryFile(dir=folder):
            numba.config.CACHE_DIR = str(folder)
    except OSError as error:
        logger.warning("compiled functions are not kept: %s", error)
        numba.config.CACHE_DIR = ""


def compiled_folder(directory: Path) -> Path:
    """The folder of this directory for this processor and these versions."""
    digest, source = hashlib.sha256(), Path(__file__).parent
    cpu = f"{get_host_cpu_name()} {get_host_cpu_features().flatten()}"
    digest.update(f"{cpu} {versions_digest(source)} {PAGE_TOKENS}".encode())
    for file in sorted(source.glob("*.py")):  # numba compares their times
        digest.update(f"{file.stat().st_mtime_ns}".encode())
    return directory / f"compiled-{digest.hexdigest()[:16]}"


def _check_private(folder: Path) -> None:
    """Raise ``PermissionError`` if a user other than this one can write there."""
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{folder} belongs to user {status.st_uid}: remove it")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(f"{folder} is writable by other users: remove it")
