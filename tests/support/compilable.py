"""Functions to compile, in a module that the process which compiles them imports quickly."""

from typing import Any

from numba import carray, types

from app.engine.kernels.compiled.openmp import barrier, get_num_threads, get_thread, pointer_to

_to_counts = pointer_to(types.int64)


def count(address: int) -> None:
    """Every thread notes itself, and after the barrier how many there are."""
    counts = carray(_to_counts(address), 16)
    thread = get_thread()
    counts[thread] = 1
    barrier()
    counts[8 + thread] = counts[:8].sum() + 10 * get_num_threads()


def broken(address: Any) -> None:
    """Nothing that numba can compile."""
    address.missing()
