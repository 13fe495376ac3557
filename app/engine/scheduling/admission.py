"""Admission of requests to the queue, limited by requests and by tokens, with a ``Retry-After``.

Works on counts and durations: without threads, an event loop or a clock.
"""

import math
from collections.abc import Sequence
from contextlib import ExitStack

from app.engine.scheduling.sequence import FinishReason, Request, RequestRefused, TokenEvent
from pruning.plural import counted

_MEMORY_S = 30.0  # busy time after which the weight of a measurement is 1/e
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0
_SHARE_OF_NEWEST = 0.1  # in the mean tokens of a request
_USUAL_TOKENS = 256.0  # of a request, and
_USUAL_TOKENS_PER_S = 4096.0  # of an engine, before any is known


class Overloaded(RuntimeError):
    """The queue is full. The backlog should be done after ``retry_after_s``."""

    def __init__(self, what: str, reason: str, retry_after_s: float) -> None:
        super().__init__(f"the queue is full: {what}; retry in {retry_after_s:.0f} s")
        self.reason = reason  # for the metrics
        self.retry_after_s = retry_after_s


class Admission:
    """Limits open requests, and the tokens of waiting ones: prompts plus ``max_new_tokens``.

    A request waits until its first generated token. An empty queue admits any number of tokens, or
    a large group could never be admitted. Places of requests that are being prepared are reserved,
    so that no more requests are prepared than can be admitted.
    """

    def __init__(self, max_open: int, max_waiting_tokens: int) -> None:
        self._max_open = max_open  # requests, running and waiting
        self._max_waiting_tokens = max_waiting_tokens
        self._num_reserved = 0
        self._open: dict[str, Request] = {}
        self._waiting: dict[str, int] = {}  # tokens by request, until its first generated token
        self._left: dict[str, int] = {}  # tokens by request that are still to be processed
        self._mean_tokens = _USUAL_TOKENS  # of a request
        # Of the recent busy time, with weights that decay exponentially.
        self._recent_tokens = self._recent_s = 0.0

    @property
    def num_waiting_tokens(self) -> int:
        """Prompt tokens and ``max_new_tokens`` of all requests without a generated token."""
        return sum(self._waiting.values())

    @property
    def retry_after_s(self) -> float:
        """The time for all open and reserved requests at the recent rate, within 1 to 60 s."""
        num_tokens = sum(self._left.values()) + self._num_reserved * self._mean_tokens
        return min(max(num_tokens / self._tokens_per_s, _MIN_RETRY_S), _MAX_RETRY_S)

    @property
    def _tokens_per_s(self) -> float:
        """A usual pace until the first tokens: an unknown one would have every client return at
        once."""
        is_known = self._recent_tokens > 0 and self._recent_s > 0
        return self._recent_tokens / self._recent_s if is_known else _USUAL_TOKENS_PER_S

    def check_room(self, num_requests: int, num_tokens: int = 1) -> None:
        """Raise ``RequestRefused`` for more requests than are ever admitted at once, or
        ``Overloaded`` if there is no room for so many requests and tokens now."""
        if num_requests > self._max_open:
            raise RequestRefused(
                f"too many outputs: the request has {num_requests}, but this service allows at "
                f"most {self._max_open} running and waiting requests; send fewer at once"
            )
        num_open = len(self._open) + self._num_reserved
        if num_open + num_requests > self._max_open:
            what = (
                f"{counted(num_open, 'request')} running or waiting; {num_requests} more would "
                f"exceed the limit of {self._max_open}"
            )
            raise Overloaded(what, "queue_full", self.retry_after_s)
        num_waiting = self.num_waiting_tokens
        if self._waiting and num_waiting + num_tokens > self._max_waiting_tokens:
            what = (
                f"{num_waiting} tokens are waiting, more than the limit of "
                f"{self._max_waiting_tokens}"
            )
            raise Overloaded(what, "queue_tokens_full", self.retry_after_s)

    def reserve(self, num_requests: int) -> ExitStack:
        """Hold places for requests that are being prepared, until this is closed.

        Raises as ``check_room`` does.
        """
        self.check_room(num_requests)
        self._num_reserved += num_requests
        places = ExitStack()
        places.callback(self._unreserve, num_requests)
        return places

    def admit(self, requests: Sequence[Request]) -> None:
        """Admit all of them or none. Raises ``RequestRefused`` or ``Overloaded``."""
        needed = {request.request_id: _num_tokens(request) for request in requests}
        self.check_room(len(requests), sum(needed.values()))
        self._open |= {request.request_id: request for request in requests}
        self._waiting |= needed
        self._left |= needed
        for num_tokens in needed.values():
            self._mean_tokens += _SHARE_OF_NEWEST * (num_tokens - self._mean_tokens)

    def take(self, events: Sequence[TokenEvent], busy_s: float) -> None:
        """Record the events of the last ``busy_s`` seconds of engine time."""
        fade = math.exp(-busy_s / _MEMORY_S)
        self._recent_tokens = self._recent_tokens * fade + sum(map(self._released, events))
        self._recent_s = self._recent_s * fade + busy_s

    def _unreserve(self, num_requests: int) -> None:
        self._num_reserved -= num_requests

    def _released(self, event: TokenEvent) -> int:
        """Tokens by which this event reduces the outstanding work."""
        request = self._open[event.request_id]
        was_waiting = self._waiting.pop(event.request_id, None) is not None
        num_tokens = 0 if event.token_id is None else 1
        if was_waiting and (num_tokens or event.finish_reason is FinishReason.LENGTH):
            num_tokens += len(request.prompt_ids)
        self._left[event.request_id] -= num_tokens
        if event.finish_reason is not None:
            del self._open[event.request_id], self._left[event.request_id]
            if event.timings is not None and event.timings.num_tokens:
                num_tokens += request.params.max_new_tokens - event.timings.num_tokens
        return num_tokens


def _num_tokens(request: Request) -> int:
    return len(request.prompt_ids) + request.params.max_new_tokens
