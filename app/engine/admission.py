"""Who may join the line, by requests and by tokens, and when a refused one should come back.

Counts and durations only: it knows no thread, no event loop and no clock.
"""

import math
from collections.abc import Sequence

from app.engine.engine import RequestRefused
from app.engine.sequence import Request, TokenEvent

_MEMORY_S = 30.0  # busy time after which a measurement counts for a third
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0


class Overloaded(RuntimeError):
    """No more may wait; ``retry_after_s`` is when the line should have emptied."""

    def __init__(self, what: str, reason: str, retry_after_s: float) -> None:
        super().__init__(f"{what} are waiting, and no more may: retry in {retry_after_s:.0f} s")
        self.reason = reason  # for the metrics
        self.retry_after_s = retry_after_s


class TooManyPrompts(RequestRefused):
    """One call wants more answers than the engine ever works on at once."""


class Admission:
    """Counts a request's tokens, prompt and longest answer, as waiting until it has generated one.

    A line in which nothing waits takes any group of requests: else a large one could never come in.
    """

    def __init__(self, max_open: int, max_waiting_tokens: int) -> None:
        self.max_open = max_open  # requests, running and waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._open: dict[str, Request] = {}
        self._waiting: dict[str, int] = {}  # tokens of those that have not generated any
        self._pace = _Pace()

    @property
    def num_waiting_tokens(self) -> int:
        return sum(self._waiting.values())

    @property
    def retry_after_s(self) -> float:
        """How long the line takes at the pace of late; the shortest time if there is none yet."""
        tokens_per_s = self._pace.tokens_per_s
        needed_s = self.num_waiting_tokens / tokens_per_s if tokens_per_s else 0.0
        return min(max(needed_s, _MIN_RETRY_S), _MAX_RETRY_S)

    def check_number(self, num_requests: int) -> None:
        """Raise ``TooManyPrompts`` for more than there is ever room for."""
        if num_requests > self.max_open:
            raise TooManyPrompts(
                f"{num_requests} outputs in one request: this service takes {self.max_open} at "
                f"most, running and waiting; ask for fewer at once"
            )

    def admit(self, requests: Sequence[Request]) -> None:
        """Take all of them or none. Raises ``TooManyPrompts`` or ``Overloaded``."""
        self.check_number(len(requests))
        if len(self._open) + len(requests) > self.max_open:
            what = f"{len(self._waiting)} requests"
            raise Overloaded(what, "queue_full", self.retry_after_s)
        wanted = sum(map(_num_tokens, requests))
        if self._waiting and self.num_waiting_tokens + wanted > self._max_waiting_tokens:
            what = f"{self.num_waiting_tokens} tokens"
            raise Overloaded(what, "queue_tokens_full", self.retry_after_s)
        self._open |= {its.request_id: its for its in requests}
        self._waiting |= {its.request_id: _num_tokens(its) for its in requests}

    def take(self, events: Sequence[TokenEvent], busy_s: float) -> None:
        """Note what the engine did in the last ``busy_s`` seconds."""
        self._pace.add(sum(map(self._released, events)), busy_s)

    def _released(self, event: TokenEvent) -> int:
        """Tokens that this event takes out of the line or of the work in front of it."""
        request = self._open[event.request_id]
        was_waiting = self._waiting.pop(event.request_id, None) is not None
        num_tokens = 0 if event.token_id is None else 1
        if was_waiting and num_tokens:
            num_tokens += len(request.prompt_ids)
        if event.finish_reason is not None:
            del self._open[event.request_id]
            if event.timings is not None and event.timings.num_tokens:
                num_tokens += request.params.max_new_tokens - event.timings.num_tokens
        return num_tokens


class _Pace:
    """Tokens per second of busy time; what was measured long ago counts less and less."""

    def __init__(self) -> None:
        self._num_tokens = 0.0
        self._busy_s = 0.0

    @property
    def tokens_per_s(self) -> float:
        return self._num_tokens / self._busy_s if self._busy_s else 0.0

    def add(self, num_tokens: int, busy_s: float) -> None:
        fade = math.exp(-busy_s / _MEMORY_S)
        self._num_tokens = self._num_tokens * fade + num_tokens
        self._busy_s = self._busy_s * fade + busy_s


def _num_tokens(request: Request) -> int:
    return len(request.prompt_ids) + request.params.max_new_tokens
