"""Admission of requests to the queue, limited by requests and by tokens, with a ``Retry-After``.

Works on counts and durations: without threads, an event loop or a clock.
"""

import math
from collections.abc import Sequence

from app.engine.engine import RequestRefused
from app.engine.sequence import Request, TokenEvent

_MEMORY_S = 30.0  # busy time after which the weight of a measurement is 1/e
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0


class Overloaded(RuntimeError):
    """The queue is full. It should be empty after ``retry_after_s``."""

    def __init__(self, what: str, reason: str, retry_after_s: float) -> None:
        super().__init__(f"the queue is full: {what} are waiting; retry in {retry_after_s:.0f} s")
        self.reason = reason  # for the metrics
        self.retry_after_s = retry_after_s


class TooManyPrompts(RequestRefused):
    """A request has more outputs than are ever admitted at once."""


class Admission:
    """Limits open requests, and the tokens of waiting ones: prompts plus ``max_new_tokens``.

    A request waits until its first generated token. An empty queue admits any number of tokens, or
    a large group could never be admitted.
    """

    def __init__(self, max_open: int, max_waiting_tokens: int) -> None:
        self.max_open = max_open  # requests, running and waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._open: dict[str, Request] = {}
        self._waiting: dict[str, int] = {}  # tokens by request, until its first generated token
        self._pace = _Pace()

    @property
    def num_waiting_tokens(self) -> int:
        return sum(self._waiting.values())

    @property
    def retry_after_s(self) -> float:
        """The time for all waiting tokens at the recent rate, within 1 to 60 s."""
        tokens_per_s = self._pace.tokens_per_s
        needed_s = self.num_waiting_tokens / tokens_per_s if tokens_per_s else 0.0
        return min(max(needed_s, _MIN_RETRY_S), _MAX_RETRY_S)

    def check_number(self, num_requests: int) -> None:
        """Raise ``TooManyPrompts`` for more requests than ``max_open``."""
        if num_requests > self.max_open:
            raise TooManyPrompts(
                f"{num_requests} outputs in one request: this service takes at most "
                f"{self.max_open}, running and waiting; ask for fewer at once"
            )

    def admit(self, requests: Sequence[Request]) -> None:
        """Admit all of them or none. Raises ``TooManyPrompts`` or ``Overloaded``."""
        self.check_number(len(requests))
        if len(self._open) + len(requests) > self.max_open:
            what = f"{len(self._waiting)} requests"
            raise Overloaded(what, "queue_full", self.retry_after_s)
        wanted = sum(map(_num_tokens, requests))
        if self._waiting and self.num_waiting_tokens + wanted > self._max_waiting_tokens:
            what = f"{self.num_waiting_tokens} tokens"
            raise Overloaded(what, "queue_tokens_full", self.retry_after_s)
        self._open |= {request.request_id: request for request in requests}
        self._waiting |= {request.request_id: _num_tokens(request) for request in requests}

    def take(self, events: Sequence[TokenEvent], busy_s: float) -> None:
        """Record the events of the last ``busy_s`` seconds of engine time."""
        self._pace.add(sum(map(self._released, events)), busy_s)

    def _released(self, event: TokenEvent) -> int:
        """Tokens by which this event reduces the outstanding work."""
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
    """Tokens per second of busy time, with exponentially decaying weights."""

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
