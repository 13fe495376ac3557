"""The engine driven in this process, without text, threads or HTTP."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from app.engine.engine import Engine
from app.engine.scheduling.sequence import Request, SamplingParams
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
    sent_s: list[float] = []
    received_s: dict[str, list[float]] = {}
    num_open = 0
    began_s = time.perf_counter()
    while waiting or num_open:
        while waiting and num_open < concurrency:
            received_s[waiting[0].request_id] = []
            sent_s.append(time.perf_counter())
            engine.add(waiting.popleft())
            num_open += 1
        events, now_s = engine.step(), time.perf_counter()
        for event in events:
            if event.token_id is not None:
                received_s[event.request_id].append(now_s)
            if event.finish_reason is not None:
                num_open -= 1
    seconds = time.perf_counter() - began_s
    each = zip(sent_s, received_s.values(), requests, strict=True)
    return Pass(seconds, tuple(checked_timing(*of_request) for of_request in each))


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
