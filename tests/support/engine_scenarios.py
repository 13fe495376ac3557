"""Scenes played on a started asynchronous engine, which is stopped afterwards."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from app.engine.async_engine import AsyncEngine
from app.engine.engine import Engine
from app.engine.sampling.stream import Stream
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import Request, TokenEvent
from tests.support.engine_requests import prompt, request
from tests.support.tiny import MAX_POSITIONS

ENDLESS = MAX_POSITIONS - 9  # new tokens behind a prompt of nine: longer than any test looks

Scenario = Callable[[AsyncEngine], Coroutine[Any, Any, None]]


def scenario(
    run: Scenario,
    *,
    max_waiting: int = 8,
    max_waiting_tokens: int = 100_000,
    stall_s: float = 60.0,
    engine: Engine | None = None,
    **limits: int,
) -> None:
    """Run it on a started engine, which is stopped afterwards."""

    async def main() -> None:
        each = AsyncEngine(
            engine or Engine(EngineLimits(**limits)),
            max_waiting,
            max_waiting_tokens=max_waiting_tokens,
            stall_s=stall_s,
        )
        each.start()
        try:
            await run(each)
        finally:
            await each.stop()
            assert not each.is_alive

    asyncio.run(asyncio.wait_for(main(), timeout=100))


async def events_of(stream: Stream) -> list[TokenEvent]:
    async with stream:
        return [event async for event in stream]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def endless(seed: int = 0, request_id: str | None = None) -> Request:
    return request(prompt(9, seed), max_new_tokens=ENDLESS, ignore_eos=True, request_id=request_id)
