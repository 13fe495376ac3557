"""How one forward runs, what may interrupt it, and which kernels it ran."""

from dataclasses import dataclass, field

import numpy as np


class StepInterrupted(BaseException):
    """A forward was interrupted. No ``Exception``: the engine would handle it as a failure."""


class Interruption:
    """A flag that any thread may set. Forwards look at it between two blocks.

    It is a number in memory, since compiled blocks read it too, at ``address`` as an int64.
    """

    def __init__(self) -> None:
        self._flag = np.zeros(1, dtype=np.int64)
        self.address: int = self._flag.ctypes.data

    def set(self) -> None:
        self._flag[0] = 1

    def clear(self) -> None:
        self._flag[0] = 0

    @property
    def is_set(self) -> bool:
        return bool(self._flag[0])

    def check(self) -> None:
        """Raise ``StepInterrupted`` if the flag is set."""
        if self.is_set:
            raise StepInterrupted


NEVER = Interruption()  # of live steps, which nothing interrupts


@dataclass(frozen=True)
class Step:
    """How one forward runs. Live and background steps differ in their interruption only.

    A reproducible step runs kernels whose result for a token depends on no other token of the
    batch, and on no measurement.
    """

    interruption: Interruption = NEVER
    is_reproducible: bool = False
    kernels: dict[str, str] = field(default_factory=dict)  # that ran, by what they computed
