"""The engine, driven in this process without text, threads or HTTP."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from app.engine.engine import Engine
from app.engine.sequence import FinishReason, Request, SamplingParams, TokenEvent
from app.engine.variant import Variant
from benchmarks.latencies import Answered, Pass
from benchmarks.workload import Ask


class WrongLength(RuntimeError):
    """A side has generated more or fewer tokens than it was asked for."""


def run_engine(
    variant: Variant,
    asks: Sequence[Ask],
    concurrency: int,
    make_engine: Callable[[], Engine] = Engine,
) -> Pass:
    """Answer all, with so many in the engine at any time."""
    engine = make_engine()
    waiting = deque(requests(variant, asks))
    log = _Log()
    began_s = time.perf_counter()
    while waiting or log.num_open:
        while waiting and log.num_open < concurrency:
            request = waiting.popleft()
            log.sent(request)
            engine.add(request)
        log.take(engine.step())
    return Pass(time.perf_counter() - began_s, log.answers(asks))


def requests(variant: Variant, asks: Sequence[Ask]) -> list[Request]:
    """Greedy, and of exactly the lengths asked for."""
    return [
        Request(
            str(number),
            variant,
            ask.prompt_ids,
            SamplingParams(max_new_tokens=ask.num_new_tokens, ignore_eos=True),
        )
        for number, ask in enumerate(asks)
    ]


class _Log:
    """When each request was sent, and when its tokens came."""

    def __init__(self) -> None:
        self._sent_s: dict[str, float] = {}
        self._came_s: dict[str, list[float]] = {}
        self.num_open = 0

    def sent(self, request: Request) -> None:
        self._sent_s[request.request_id] = time.perf_counter()
        self._came_s[request.request_id] = []
        self.num_open += 1

    def take(self, events: Sequence[TokenEvent]) -> None:
        now_s = time.perf_counter()
        for event in events:
            if event.token_id is not None:
                self._came_s[event.request_id].append(now_s)
            if event.finish_reason is not None:
                self.num_open -= 1
                assert event.finish_reason is FinishReason.LENGTH, event

    def answers(self, asks: Sequence[Ask]) -> tuple[Answered, ...]:
        return tuple(
            answered(self._sent_s[str(number)], self._came_s[str(number)], ask)
            for number, ask in enumerate(asks)
        )


def answered(
    sent_s: float, came_s: Sequence[float], ask: Ask, num_tokens: int | None = None
) -> Answered:
    """Raises ``WrongLength``; without ``num_tokens`` every piece is one."""
    num_tokens = len(came_s) if num_tokens is None else num_tokens
    if num_tokens != ask.num_new_tokens:
        raise WrongLength(
            f"asked for {ask.num_new_tokens} tokens, got {num_tokens}: rates would be wrong"
        )
    return Answered(sent_s, tuple(came_s), num_tokens)
