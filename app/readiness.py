"""Whether the process accepts traffic, and the deadline of its shutdown."""

import time


class Readiness:
    """Starts as not ready; once draining, it stays so."""

    def __init__(self) -> None:
        self._reason: str | None = "starting"
        self._drained_s: float | None = None  # moment on the monotonic clock

    @property
    def reason(self) -> str | None:
        """Why the process is not ready; None if it is."""
        return self._reason if self._drained_s is None else "draining"

    @reason.setter
    def reason(self, reason: str | None) -> None:
        self._reason = reason

    @property
    def is_draining(self) -> bool:
        return self._drained_s is not None

    @property
    def drain_s(self) -> float:
        """Seconds left for running work; 0 unless draining."""
        return 0.0 if self._drained_s is None else max(self._drained_s - time.monotonic(), 0.0)

    def drain(self, timeout_s: float) -> None:
        """Give running work ``timeout_s`` to finish. Later calls change nothing."""
        if self._drained_s is None:
            self._drained_s = time.monotonic() + timeout_s
