"""Work of loading that gives way to the steps of the engine, which share the cores with it."""

import ctypes
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

import torch

# Of a thread that reads a model from disk, and of one that makes a variant in memory: the first
# has work for many seconds, and must end beside other processes too.
_READING_NICENESS, _MAKING_NICENESS = 10, 19
_Result = TypeVar("_Result")


def beside_steps(work: Callable[[], _Result]) -> _Result:
    """The result of work in a thread of its own, of low priority and on one core.

    Steps run on all cores and wait for the slowest of them. The calling thread could not get its
    priority back.
    """
    future: Future[_Result] = Future()

    def run() -> None:
        give_way(_MAKING_NICENESS)
        _take_one_core()
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 - the future raises it
            future.set_exception(error)

    threading.Thread(target=run, name="load", daemon=True).start()
    return future.result()


def give_way(niceness: int = _READING_NICENESS) -> None:
    """Give this thread, and no other, a low priority."""
    with suppress(OSError, AttributeError):  # of a system that has it for processes only
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def _take_one_core() -> None:
    """Let operations of this thread run on it alone: torch's own setting is for all threads."""
    torch.get_num_threads()  # which gives a new thread the setting of all
    with suppress(OSError, AttributeError):  # of a torch with another OpenMP
        ctypes.CDLL(None).omp_set_num_threads(1)
