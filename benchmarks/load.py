"""A load generator for ``/v1/completions``: streams, and notes when the pieces of answers come."""

import asyncio
import json
import time
from collections.abc import Iterable, Sequence
from itertools import accumulate
from random import Random

from benchmarks.http_stream import Part, post
from benchmarks.latencies import Answered, Pass
from benchmarks.offline import answered
from benchmarks.servers import Server, ServerFailed
from benchmarks.workload import Ask

_TIMEOUT_S = 600.0
_DATA = b"data: "
_DONE = b"data: [DONE]"


def closed_loop(server: Server, asks: Sequence[Ask], concurrency: int) -> Pass:
    """So many clients, each of which asks again as soon as it is answered.

    Raises ``BadAnswer``, ``ServerFailed`` or ``WrongLength`` for an answer that was not asked for.
    """
    return asyncio.run(_closed_loop(server, asks, concurrency))


def open_loop(server: Server, asks: Sequence[Ask], per_s: float, seed: int) -> Pass:
    """Requests at random moments, by a Poisson process, whether earlier ones are answered or not.

    Raises what ``closed_loop`` does.
    """
    return asyncio.run(_open_loop(server, asks, per_s, seed))


def arrivals_s(number: int, per_s: float, seed: int) -> list[float]:
    """Moments of a Poisson process, in seconds, the first at 0."""
    random = Random(seed)  # noqa: S311 - no secret
    gaps_s = (random.expovariate(per_s) for _ in range(number - 1))
    return list(accumulate(gaps_s, initial=0.0))


async def _closed_loop(server: Server, asks: Sequence[Ask], concurrency: int) -> Pass:
    answers: dict[int, Answered] = {}
    waiting = iter(enumerate(asks))  # of all clients, so that each request is sent once

    async def client() -> None:
        for number, ask in waiting:
            answers[number] = await _ask(server, ask)

    began_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    seconds = time.perf_counter() - began_s
    return Pass(seconds, tuple(answers[number] for number in range(len(asks))))


async def _open_loop(server: Server, asks: Sequence[Ask], per_s: float, seed: int) -> Pass:
    async def client(ask: Ask, arrival_s: float) -> Answered:
        await asyncio.sleep(began_s + arrival_s - time.perf_counter())
        return await _ask(server, ask)

    arrivals = zip(asks, arrivals_s(len(asks), per_s, seed), strict=True)
    began_s = time.perf_counter()
    answers = await asyncio.gather(*(client(*its) for its in arrivals))
    return Pass(time.perf_counter() - began_s, tuple(answers))


async def _ask(server: Server, ask: Ask) -> Answered:
    sent_s = time.perf_counter()
    async with asyncio.timeout(_TIMEOUT_S):
        parts = await post(f"{server.url}/v1/completions", server.body(ask))
    came_s, last = _events(parts)
    return answered(sent_s, came_s, ask, _num_tokens(last))


def _events(parts: Iterable[Part]) -> tuple[Sequence[float], bytes]:
    """When the pieces of the answer came, and the last event, which counts the tokens.

    That one is no piece, unless it is all there is: an answer without text.
    """
    rest, last, moments = b"", b"", []
    for moment, part in parts:
        *events, rest = (rest + part).split(b"\n\n")
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
