"""Limits of keys and tenants at a Redis, and a test of them in an event loop of its own."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from app.auth.limits import KeyLimits
from app.metrics.metrics import Metrics

_MAX_S = 100  # of a test, which may wait for what never comes


@asynccontextmanager
async def limits_at(url: str, **limits: Any) -> AsyncIterator[KeyLimits]:
    found = KeyLimits(url, Metrics(), **limits)
    try:
        yield found
    finally:
        await found.aclose()


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, _MAX_S))
