"""Functions compiled by numba, run by the OpenMP threads that torch has already.

A second pool of threads would wait for work beside torch's, on the same cores. So a function is
called through the interface of libgomp, which torch loads: every thread runs the whole function,
takes its own share of the work, and meets the others at barriers.
"""

import ctypes
import hashlib
import logging
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch
from numba import types
from numba.core.errors import NumbaError
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Floats = NDArray[np.float32]
_Function = TypeVar("_Function", bound=Callable[..., Any])

# Sums may be reordered, or they could not be computed by vectors. Infinities and NaN stay right.
_FAST = {"reassoc", "contract", "nsz", "arcp"}

get_thread: Callable[[], int] = types.ExternalFunction("omp_get_thread_num", types.int32())
get_num_threads: Callable[[], int] = types.ExternalFunction("omp_get_num_threads", types.int32())
barrier: Callable[[], None] = types.ExternalFunction("GOMP_barrier", types.void())


def compiled(function: _Function) -> _Function:
    """A function for other compiled ones to call. It is compiled when one of them is."""
    return cast("_Function", numba.njit(fastmath=_FAST, error_model="numpy")(function))


def inlined(function: _Function) -> _Function:
    """The same for one that is called at one place, of which it becomes a part. numba would compile
    it by itself as well, with all that it calls, which takes half a second."""
    decorate = numba.njit(fastmath=_FAST, error_model="numpy", inline="always")
    return cast("_Function", decorate(function))


def by_type(function: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """A decorator of what returns the compiled form of ``function`` for types of arguments."""
    return cast(
        "Callable[[_Function], _Function]", overload(function, strict=False, inline="always")
    )


@compiled
def share(number: int) -> Any:
    """This thread's part of a range: where it begins and ends."""
    thread, num_threads = get_thread(), get_num_threads()
    return thread * number // num_threads, (thread + 1) * number // num_threads


def pointer_to(dtype: types.Type) -> Callable[[int], Any]:
    """A compiled function from an address to a pointer to this type."""
    target = types.CPointer(dtype)

    def pointer(_context: Any, _address: Any) -> Any:
        def make(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            return builder.inttoptr(values[0], context.get_value_type(target))

        return target(types.int64), make

    return cast("Callable[[int], Any]", intrinsic(pointer))


class ParallelFunction:
    """A function of one address, which all threads run."""

    def __init__(self, function: Callable[[int], None]) -> None:
        """Compile it, which takes seconds, or read what ``keep_compiled_in`` has kept."""
        self._compiled = _kept(function) if numba.config.CACHE_DIR else _compile(function)
        self._address = ctypes.c_void_p(self._compiled.address)

    def __call__(self, address: int) -> None:
        """Run it on as many threads as torch uses, with the address of what it works on."""
        _gomp().GOMP_parallel(
            self._address, ctypes.c_void_p(address), ctypes.c_uint(torch.get_num_threads()), 0
        )


def _kept(function: Callable[[int], None]) -> Any:
    try:
        return _compile(function, cache=True)
    except NumbaError:
        raise
    except Exception:  # whatever a damaged file or a full disk leads to
        logger.warning("compiled functions cannot be kept or read", exc_info=True)
        return _compile(function)


def _compile(function: Callable[[int], None], *, cache: bool = False) -> Any:
    return numba.cfunc(types.void(types.int64), error_model="numpy", cache=cache)(function)


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

    numba looks at the file of a function alone, and not at those of what it calls. So each version
    of the source has a folder.
    """
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    folder = directory / f"compiled-{digest.hexdigest()[:16]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            numba.config.CACHE_DIR = str(folder)
    except OSError as error:
        logger.warning("compiled functions are not kept: %s", error)
        numba.config.CACHE_DIR = ""
