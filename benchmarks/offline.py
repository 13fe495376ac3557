"""The engine driven in this process, without text, threads or HTTP."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from app.engine.engine import Engine
from app.engine.scheduling.sequence import FinishReason, Request, SamplingParams, TokenEvent
from app.engine.variant import Variant
from benchmarks.latencies import Pass, RequestTiming
from benchmarks.workload import SampleRequest


class WrongLength(RuntimeError):
    """A response has more or fewer tokens than requested."""


def run_engine(
    variant: Variant,
    requests: Sequence[SampleRequest],
    concurrency: int,
    make_engine: Callable[[], Engine] = Engine,
) -> Pass:
    """Complete all requests, with up to ``concurrency`` of them in the engine at any time."""
    engine = make_engine()
    engine.kernels.finish(variant)
    waiting = deque(engine_requests(variant, requests))
    log = _Log()
    began_s = time.perf_counter()
    while waiting or log.num_open:
        while waiting and log.num_open < concurrency:
            request = waiting.popleft()
            log.sent(request)
            engine.add(request)
        log.take(engine.step())
    return Pass(time.perf_counter() - began_s, log.timings(requests))


def engine_requests(variant: Variant, requests: Sequence[SampleRequest]) -> list[Request]:
    """Greedy engine requests that ignore the end-of-sequence token."""
    return [
        Request(
            str(number),
            variant,
            request.prompt_ids,
            SamplingParams(max_new_tokens=request.num_new_tokens, ignore_eos=True),
        )
        for number, request in enumerate(requests)
    ]


class _Log:
    """Records when each request was sent and when its tokens arrived."""

    def __init__(self) -> None:
        self._sent_s: dict[str, float] = {}
        self._received_s: dict[str, list[float]] = {}
        self.num_open = 0

    def sent(self, request: Request) -> None:
        self._sent_s[request.request_id] = time.perf_counter()
        self._received_s[request.request_id] = []
        self.num_open += 1

    def take(self, events: Sequence[TokenEvent]) -> None:
        now_s = time.perf_counter()
        for event in events:
            if event.token_id is not None:
                self._received_s[event.request_id].append(now_s)
            if event.finish_reason is not None:
                self.num_open -= 1
                assert event.finish_reason is FinishReason.LENGTH, event

    def timings(self, requests: Sequence[SampleRequest]) -> tuple[RequestTiming, ...]:
        return tuple(
            checked_timing(self._sent_s[str(number)], self._received_s[str(number)], request)
            for number, request in enumerate(requests)
        )


def checked_timing(
    sent_s: float,
    received_s: Sequence[float],
    request: SampleRequest,
    num_tokens: int | None = None,
) -> RequestTiming:
    """The timing of a request. Raises ``WrongLength``.

    Without ``num_tokens`` every time stands for one token.
    """
    num_tokens = len(received_s) if num_tokens is None else num_tokens
    if num_tokens != request.num_new_tokens:
        raise WrongLength(
            f"expected {request.num_new_tokens} tokens, got {num_tokens}: rates would be wrong"
        )
    return RequestTiming(sent_s, tuple(received_s), num_tokens)
