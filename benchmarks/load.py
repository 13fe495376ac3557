"""A load generator for ``/v1/completions`` that records when each streamed event arrives."""

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from itertools import accumulate
from random import Random

from benchmarks.http_stream import Chunk, post
from benchmarks.latencies import Pass, RequestTiming
from benchmarks.offline import checked_timing
from benchmarks.servers import Server, ServerFailed
from benchmarks.workload import SampleRequest

_TIMEOUT_S = 600.0
_DATA = b"data: "
_DONE = b"data: [DONE]"


def closed_loop(server: Server, requests: Sequence[SampleRequest], concurrency: int) -> Pass:
    """Send requests from ``concurrency`` clients, each one request at a time.

    Raises ``BadResponse``, ``ServerFailed``, or ``WrongLength`` for an unexpected number of tokens.
    """
    return asyncio.run(_closed_loop(server, requests, concurrency))


def open_loop(server: Server, requests: Sequence[SampleRequest], per_s: float, seed: int) -> Pass:
    """Send requests at the times of a Poisson process, regardless of responses.

    Raises the same errors as ``closed_loop``.
    """
    return asyncio.run(_open_loop(server, requests, per_s, seed))


def arrivals_s(number: int, per_s: float, seed: int) -> list[float]:
    """Arrival times of a Poisson process in seconds, the first at 0."""
    random = Random(seed)  # noqa: S311 - no secret
    gaps_s = (random.expovariate(per_s) for _ in range(number - 1))
    return list(accumulate(gaps_s, initial=0.0))


async def _closed_loop(server: Server, requests: Sequence[SampleRequest], concurrency: int) -> Pass:
    timings: dict[int, RequestTiming] = {}
    waiting = iter(enumerate(requests))  # shared by all clients

    async def client() -> None:
        for number, request in waiting:
            timings[number] = await _send(server, request)

    began_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    seconds = time.perf_counter() - began_s
    return Pass(seconds, tuple(timings[number] for number in range(len(requests))))


async def _open_loop(
    server: Server, requests: Sequence[SampleRequest], per_s: float, seed: int
) -> Pass:
    async def client(request: SampleRequest, arrival_s: float) -> RequestTiming:
        await asyncio.sleep(began_s + arrival_s - time.perf_counter())
        return await _send(server, request)

    arrivals = zip(requests, arrivals_s(len(requests), per_s, seed), strict=True)
    began_s = time.perf_counter()
    timings = await asyncio.gather(*(client(*arrival) for arrival in arrivals))
    return Pass(time.perf_counter() - began_s, tuple(timings))


async def _send(server: Server, request: SampleRequest) -> RequestTiming:
    sent_s = time.perf_counter()
    async with asyncio.timeout(_TIMEOUT_S):
        chunks = await post(f"{server.url}/v1/completions", server.body(request))
    received_s, last = _events(chunks)
    return checked_timing(sent_s, received_s, request, _num_tokens(last))


def _events(chunks: Iterable[Chunk]) -> tuple[Sequence[float], bytes]:
    """Arrival times of the events with text, and the last event, which has the usage.

    A response without text has only the last event: its time is returned.
    """
    rest, last, moments = b"", b"", []
    for moment, chunk in chunks:
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            if event.startswith(_DATA) and event != _DONE:
                moments.append(moment)
                last = event
    return moments[:-1] or moments, last


def _num_tokens(last: bytes) -> int:
    try:
        return int(json.loads(last.removeprefix(_DATA))["usage"]["completion_tokens"])
    except (ValueError, KeyError, TypeError) as error:
        text = last.decode(errors="replace")
        raise ServerFailed(f"the stream does not end with usage, but with {text!r}") from error
