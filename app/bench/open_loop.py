"""Open-loop load: requests arrive when they do, whether earlier ones have an answer or not.

A promise about their latency has upper limits for the times of a request, as vLLM's ``--goodput``.
"""

import asyncio
import json
import re
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Self

from app.bench.runs import num_cached_tokens, random_requests
from app.engine.async_engine import AsyncEngine
from app.engine.autotuning import OFF, Autotuner
from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import Request, Timings
from app.engine.variant import Variant

_UNLIMITED = 1 << 30  # cache tokens, so that no request is refused
_UNITS: Mapping[str, float] = {"ms": 1e-3, "s": 1.0, "": 1e-3}
_LIMIT = re.compile(r"(ttft|tpot|e2el?)[=:]([0-9]+(?:\.[0-9]+)?)(ms|s|)")


class InvalidTrace(ValueError):
    """A file of arrivals cannot be read."""


class InvalidPromise(ValueError):
    """The text of a promise cannot be read."""


@dataclass(frozen=True)
class Promise:
    """None: this time is not limited. At least one is."""

    ttft_s: float | None = None  # until the first token
    tpot_s: float | None = None  # of each further token, on average
    e2e_s: float | None = None  # until the last one

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``ttft=500ms,tpot=50ms``, also with colons; a number without unit is in ms.

        As in vLLM, ``e2el`` is a name of ``e2e``. Raises ``InvalidPromise``.
        """
        limits: dict[str, float] = {}
        for part in text.split(","):
            match = _LIMIT.fullmatch(part.strip())
            if match is None or not float(match[2]):
                raise InvalidPromise(
                    f"{part.strip()!r} is not a latency target: expected ttft, tpot or e2e with a "
                    "time, e.g. ttft=500ms,tpot=50ms"
                )
            limits[f"{match[1].removesuffix('l')}_s"] = float(match[2]) * _UNITS[match[3]]
        return cls(**limits)

    def __str__(self) -> str:
        return ", ".join(
            f"{name.removesuffix('_s')} of at most {1e3 * limit:g} ms"
            for name, limit in vars(self).items()
            if limit is not None
        )

    def is_kept(self, timings: Timings) -> bool:
        """Whether a request kept it. One without a second token has no time per token."""
        return self.strain(timings) <= 1

    def strain(self, timings: Timings) -> float:
        """The largest share of its limit that a time of the request takes; 0 if it has none."""
        pairs = ((getattr(timings, name), limit) for name, limit in vars(self).items())
        shares = (time_s / limit for time_s, limit in pairs if None not in (time_s, limit))
        return max(shares, default=0.0)


@dataclass(frozen=True)
class Arrival:
    """A request at request rate 1. At another rate all arrivals are so many times as dense."""

    at_s: float
    prompt_tokens: int
    new_tokens: int


@dataclass(frozen=True)
class Served:
    """How many of the requests kept the promise, and how many were looked at."""

    num_kept: int
    num_requests: int
    seconds: float  # of the whole run
    is_cut_short: bool = False  # the share was out of reach before the last request
    num_cached_tokens: int = 0  # of prompts: their keys and values were there
    strain: float | None = None  # that the promised share of them does not exceed; of the promise

    @property
    def share(self) -> float:
        return self.num_kept / self.num_requests


def poisson(num_requests: int, prompt_tokens: int, new_tokens: int, seed: int) -> list[Arrival]:
    """Arrivals with exponential gaps of one second on average, equal for equal seeds."""
    draw = Random(seed)  # noqa: S311 - no secret
    at_s, arrivals = 0.0, []
    for _ in range(num_requests):
        arrivals.append(Arrival(at_s, prompt_tokens, new_tokens))
        at_s += draw.expovariate(1.0)
    return arrivals


def within(arrivals: Sequence[Arrival], until_s: float, at_least: int) -> Sequence[Arrival]:
    """Those until a time at request rate 1, and at least so many."""
    number = bisect_right(arrivals, until_s, key=lambda arrival: arrival.at_s)
    return arrivals[: max(number, at_least)]


def read_trace(path: Path) -> list[Arrival]:
    """JSON lines of ``arrival`` in seconds, ``prompt_tokens`` and ``new_tokens``, in order.

    The times are scaled to one request a second on average. Raises ``InvalidTrace``.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
        arrivals = [
            Arrival(float(one["arrival"]), int(one["prompt_tokens"]), int(one["new_tokens"]))
            for one in lines
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InvalidTrace(
            f'{path} is not a trace: expected JSON lines like {{"arrival": 0.5, '
            f'"prompt_tokens": 64, "new_tokens": 32}} ({type(error).__name__}: {error})'
        ) from error
    ordered = sorted(arrivals, key=lambda one: one.at_s)
    span_s = ordered[-1].at_s - ordered[0].at_s if ordered else 0.0
    if span_s <= 0 or any(one.prompt_tokens < 1 or one.new_tokens < 1 for one in ordered):
        raise InvalidTrace(
            f"{path}: expected at least two arrivals at different times, each with at least "
            "one token"
        )
    scale = (len(ordered) - 1) / span_s
    return [replace(one, at_s=(one.at_s - ordered[0].at_s) * scale) for one in ordered]


def serve(
    variant: Variant,
    arrivals: Sequence[Arrival],
    rate: float,
    promise: Promise,
    share: float,
    *,
    seed: int = 0,
    tuner: Autotuner = OFF,
) -> Served:
    """Serve the arrivals at this request rate, until all have an answer or ``share`` of them can no
    longer keep the promise.
    """
    return asyncio.run(_served(variant, arrivals, rate, promise, share, seed, tuner))


async def _served(
    variant: Variant,
    arrivals: Sequence[Arrival],
    rate: float,
    promise: Promise,
    share: float,
    seed: int,
    tuner: Autotuner,
) -> Served:
    engine = _engine(variant, len(arrivals), tuner)
    lengths = ((one.prompt_tokens, one.new_tokens) for one in arrivals)
    requests = random_requests(variant, lengths, seed)
    tolerated = int((1 - share) * len(arrivals) + 1e-9)
    ended: list[Timings] = []
    is_lost = asyncio.Event()

    async def client(request: Request, arrival: Arrival, began_s: float) -> None:
        await asyncio.sleep(max(0.0, began_s + arrival.at_s / rate - time.monotonic()))
        async with engine.stream(replace(request, arrived_s=time.monotonic())) as events:
            ended.extend([event.timings async for event in events if event.timings is not None])
        if sum(not promise.is_kept(each) for each in ended) > tolerated:
            is_lost.set()

    engine.start()
    began_s = time.monotonic()
    try:
        pairs = zip(requests, arrivals, strict=True)
        clients = [asyncio.create_task(client(*pair, began_s)) for pair in pairs]
        await _all_or_lost(clients, is_lost)
    finally:
        await engine.stop()
    return Served(
        num_kept=sum(map(promise.is_kept, ended)),
        num_requests=len(ended),
        seconds=time.monotonic() - began_s,
        is_cut_short=len(ended) < len(arrivals),
        num_cached_tokens=num_cached_tokens(ended),
        strain=_strain([promise.strain(each) for each in ended], share),
    )


def _strain(each: Sequence[float], share: float) -> float | None:
    """The quantile ``share`` of them, so that a promise is kept up to 1."""
    allowed = int((1 - share) * len(each) + 1e-9)
    return sorted(each)[-1 - allowed] if each else None


def _engine(variant: Variant, max_waiting: int, tuner: Autotuner) -> AsyncEngine:
    """An engine that has chosen its kernels and refuses no request."""
    inner = Engine(EngineLimits(), tuner=tuner)
    inner.kernels.finish(variant)
    return AsyncEngine(inner, max_waiting=max_waiting, max_waiting_tokens=_UNLIMITED)


async def _all_or_lost(clients: "list[asyncio.Task[None]]", is_lost: asyncio.Event) -> None:
    """Wait for all clients. The first error of one ends the others, and so does ``is_lost``."""
    lost: asyncio.Future[Any] = asyncio.create_task(is_lost.wait())
    everyone: asyncio.Future[Any] = asyncio.gather(*clients)
    try:
        await asyncio.wait([everyone, lost], return_when=asyncio.FIRST_COMPLETED)
        if everyone.done():
            everyone.result()
    finally:
        for each in (lost, everyone, *clients):
            each.cancel()
        await asyncio.gather(lost, everyone, *clients, return_exceptions=True)
