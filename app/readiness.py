"""Whether traffic should come here, and the one deadline of a shutdown."""

import time


class Readiness:
    """Starts as not ready; once draining, it stays so."""

    def __init__(self) -> None:
        self._reason: str | None = "starting"
        self._drained_s: float | None = None  # moment on the monotonic clock

    @property
    def reason(self) -> str | None:
        """Why no traffic should come; None if it should."""
        return self._reason if self._drained_s is None else "draining"

    @reason.setter
    def reason(self, reason: str | None) -> None:
        self._reason = reason

    @property
    def is_draining(self) -> bool:
        return self._drained_s is not None

    @property
    def drain_s(self) -> float:
        """Seconds that are left for what has begun; none unless draining."""
        return 0.0 if self._drained_s is None else max(self._drained_s - time.monotonic(), 0.0)

    def drain(self, patience_s: float) -> None:
        """Give what has begun so long to end. A later call changes nothing."""
        if self._drained_s is None:
            self._drained_s = time.monotonic() + patience_s
