"""What models need before their steps are as fast as they can be: compiled functions, kernels that
are timed, and on a GPU recorded steps.

Other threads add models. The thread of the engine times kernels in short increments, when there is
no other work or little time passes with it. So no step and no request waits for long.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from threading import Lock, Thread
from typing import Literal
from weakref import ref

import torch

from app.engine.autotuning import Autotuner, Trial, chosen, timed
from app.engine.kernels.compiled.compilation import compile_beside
from app.engine.kernels.compiled.openmp import ParallelFunction
from app.engine.variant import Variant

logger = logging.getLogger(__name__)

_COMPILING_S = 0.1  # between two looks at what is compiled
_AGAIN_S = 30.0  # between two attempts to time again what is not firm
_MAX_ATTEMPTS = 5  # of which the last ones rarely change a choice
_MAX_SHARE = 0.1  # of the time of live steps that increments may take beside them

Trials = Callable[[], Iterable[Trial]]
State = Literal["compiling", "timing", "ready", "failed"]


class Recorded(Enum):
    """What came of an attempt to record the next step of a variant."""

    ONE = auto()  # or it was set aside, and others are left
    ALL = auto()  # none was left, or none can be recorded
    NOT_NOW = auto()  # there was no memory for those that are left


Record = Callable[[Variant], Recorded]


@dataclass(eq=False)
class _Model:
    """A model that warms up."""

    variant: Callable[[], Variant | None]
    functions: Sequence[ParallelFunction]
    trials: Trials
    record: Record | None = None  # until all steps are recorded
    num_attempts: int = 0  # to time its kernels
    has_doubt: bool = False  # some of its choices are not firm
    num_compiled: int = 0  # functions that were ready when it was timed

    @property
    def num_ready(self) -> int:
        return sum(each.is_ready for each in self.functions)

    @property
    def is_compiling(self) -> bool:
        return any(each.is_awaited for each in self.functions)

    @property
    def has_failed(self) -> bool:
        return any(each.has_failed and not each.is_ready for each in self.functions)

    @property
    def is_due_again(self) -> bool:
        is_unrecorded = self.record is not None
        has_doubt = self.has_doubt and self.num_attempts < _MAX_ATTEMPTS
        return has_doubt or is_unrecorded or self.num_ready > self.num_compiled


class WarmUp:
    """Compiles and times. ``advance`` is for the thread of the engine, the rest for any thread."""

    def __init__(self, tuner: Autotuner, clock: Callable[[], float] = time.monotonic) -> None:
        self._tuner = tuner
        self._clock = clock
        self._lock = Lock()
        self._waiting: deque[_Model] = deque()
        self._current: _Model | None = None
        self._increments: Generator[None, None, None] | None = None
        self._done: list[_Model] = []  # which may be timed again
        self._again_s = 0.0
        self._num_holds = 0  # as long as there are any, no model is timed again
        self._longest_s = 0.0  # increment of the current trial and the one before
        self._is_recording = False
        self._spent_s = self._live_s = 0.0

    def add(
        self,
        variant: Variant,
        functions: Sequence[ParallelFunction],
        trials: Trials,
        record: Record | None = None,
    ) -> None:
        """Compile these functions, unless they are ready, and then time these kernels, unless their
        times are known or not needed. Then ``record`` steps."""
        if not self._tuner.chooses and record is None:
            return
        compile_beside(functions)
        needed = trials if self._tuner.needs_times else tuple
        with self._lock:
            self._waiting.append(_Model(ref(variant), functions, needed, record))

    def is_warming_up(self, variant: Variant) -> bool:
        """Whether its steps may become faster soon."""
        with self._lock:
            models = [*self._waiting, *([self._current] if self._current else [])]
            return any(model.variant() is variant for model in models)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Time no model again meanwhile. Those that were never timed still are."""
        with self._lock:
            self._num_holds += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_holds -= 1

    @property
    def state(self) -> State:
        """What is done for the kernels now. Where compiling has failed, torch's are used."""
        with self._lock:
            if any(model.is_compiling for model in self._waiting):
                return "compiling"
            if self._waiting or self._current:
                return "timing"
            has_failed = any(model.has_failed for model in self._done if model.variant())
            return "failed" if has_failed else "ready"

    @property
    def wait_s(self) -> float | None:
        """Seconds until ``advance`` may have something to do; None if it will not."""
        with self._lock:
            if self._current is not None or any(not each.is_compiling for each in self._waiting):
                return 0.0
            if self._waiting:
                return _COMPILING_S
            if self._again():
                return max(self._again_s - self._clock(), 0.0)
            return None

    def advance(self) -> bool:
        """Run one increment. False if there is none now."""
        if self._increments is None and not self._begin():
            return False
        assert self._increments is not None
        began_s = self._clock()
        try:
            with torch.inference_mode():
                next(self._increments)
        except StopIteration:
            self._end()
        except Exception:  # of a kernel, or for lack of memory
            logger.exception("kernels could not be measured: using the default ones")
            self._end()
        self._longest_s = max(self._longest_s, self._clock() - began_s)
        return True

    def advance_beside(self, step_s: float) -> None:
        """Run an increment after a live step of that length, if it is short beside such steps. A
        recording is not, but is never made otherwise where there always are live steps."""
        self._live_s += step_s
        is_short = self._is_recording or 2 * self._longest_s <= step_s
        if is_short and self._spent_s <= _MAX_SHARE * self._live_s:
            began_s = self._clock()
            self.advance()
            self._spent_s += self._clock() - began_s

    def finish(self) -> None:
        """Time now what waits and is compiled. For a thread without other work."""
        while self.wait_s == 0.0 and (self._waiting or self._current):
            self.advance()

    def _begin(self) -> bool:
        with self._lock:
            self._current = self._next()
            if self._current is None:
                return False
            self._current.num_compiled = self._current.num_ready
            self._increments = self._warmed(self._current)
            return True

    def _next(self) -> _Model | None:
        for model in self._waiting:
            if not model.is_compiling:
                self._waiting.remove(model)
                return model
        if (again := self._again()) and self._clock() >= self._again_s:
            self._done.remove(again[0])
            return again[0]
        return None

    def _again(self) -> list[_Model]:
        """The models to time again, of those that are still loaded."""
        self._done = [model for model in self._done if model.variant() is not None]
        return [] if self._num_holds else [model for model in self._done if model.is_due_again]

    def _end(self) -> None:
        with self._lock:
            if self._current is not None:
                self._current.num_attempts += 1
                self._done.append(self._current)
            self._current = self._increments = None
            self._is_recording = False
            self._longest_s = 0.0
            self._again_s = self._clock() + _AGAIN_S
        Thread(target=self._tuner.save, name="tuning").start()  # no step waits for the disk

    def _warmed(self, model: _Model) -> Generator[None, None, None]:
        yield from self._timed(model)
        self._is_recording = True
        while model.record is not None and (variant := model.variant()) is not None:
            recorded = model.record(variant)
            del variant  # which may be unloaded meanwhile
            if recorded is Recorded.ALL:
                model.record = None
            elif recorded is Recorded.NOT_NOW:
                return
            yield

    def _timed(self, model: _Model) -> Generator[None, None, None]:
        """Time what is not known, and at another time again what is not firm."""
        model.has_doubt = False
        for trial in model.trials():
            known = self._tuner.known(trial.key)
            if known is None or not (known.is_firm or model.num_attempts == 0):
                known = chosen((yield from timed(trial)), known)
                self._tuner.record(trial.key, known)
            model.has_doubt |= not known.is_firm
