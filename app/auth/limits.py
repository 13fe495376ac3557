"""Limits of each API key: requests per minute, and concurrent generations.

All API processes of one Redis count together. It holds two sorted sets per key: the times of the
requests of the last minute, and the leases of running generations. Leases are renewed while they
are held, so those of a process that dies expire. One script checks both limits, by the clock of
Redis, and a refused request counts for neither.

While Redis does not respond, all requests are admitted: generation does not need Redis, and the
limits of the engine still hold. This is logged and counted as ``sleb_key_limits_unknown_total``.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from app.auth.keys import ApiKey
from app.metrics.metrics import Metrics
from pruning.jobs.keys import KEY_RECENT, KEY_RUNNING
from pruning.plural import counted

logger = logging.getLogger(__name__)

WINDOW_S = 60
LEASE_S = 30.0
RENEW_EVERY_S = LEASE_S / 3
PAUSE_S = 1.0  # after a Redis command failed
_TIMEOUT_S = 0.5  # of a Redis command
_RETRY_S = 1.0  # at the limit of concurrent generations, whose end is unknown
_RATE = 1  # the rate limit, as the script below returns it

# KEYS recent, running. ARGV request id, window, rate, lease, concurrency; a limit of 0 is off.
# Returns {0 or the number of the limit that is reached, microseconds until a retry may succeed}.
_ADMIT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local id, window, rate = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lease, at_once = tonumber(ARGV[4]), tonumber(ARGV[5])
if rate > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
    local last = redis.call('ZRANGE', KEYS[1], -rate, -rate, 'WITHSCORES')[2]
    if last then return {1, math.ceil((last + window - now) * 1e6)} end
end
if at_once > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now)
    if redis.call('ZCARD', KEYS[2]) >= at_once then return {2, 0} end
    redis.call('ZADD', KEYS[2], now + lease, id)
    redis.call('EXPIRE', KEYS[2], math.ceil(lease))
end
if rate > 0 then
    redis.call('ZADD', KEYS[1], now, id)
    redis.call('EXPIRE', KEYS[1], window)
end
return {0, 0}
"""
# KEYS running. ARGV request id, lease.
_RENEW = """
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], time[1] + time[2] / 1e6 + ARGV[2], ARGV[1])
redis.call('EXPIRE', KEYS[1], math.ceil(ARGV[2]))
"""


class LimitReached(RuntimeError):
    """The key has used up a limit. ``limit`` is "rate" or "concurrent"."""

    def __init__(self, message: str, limit: str, retry_after_s: float) -> None:
        self.limit = limit
        self.retry_after_s = max(1, math.ceil(retry_after_s))
        super().__init__(f"{message}. Retry in {self.retry_after_s} s.")


class KeyLimits:
    """``rate_per_min`` and ``max_concurrent`` are the defaults of keys; None is no limit."""

    renew_every_s = RENEW_EVERY_S
    pause_s = PAUSE_S

    def __init__(
        self,
        redis_url: str,
        metrics: Metrics,
        *,
        rate_per_min: int | None = None,
        max_concurrent: int | None = None,
    ) -> None:
        self._metrics = metrics
        self._rate_per_min = rate_per_min or 0
        self._max_concurrent = max_concurrent or 0
        self._redis = Redis.from_url(
            redis_url,
            socket_connect_timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            retry=Retry(ExponentialBackoff(cap=0.05, base=0.01), 1),
        )
        self._admit = self._redis.register_script(_ADMIT)
        self._renew = self._redis.register_script(_RENEW)
        self._paused_until_s = -math.inf

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def admit(self, key: ApiKey, *, is_generation: bool) -> "Lease | None":
        """Count a request. Its lease, if any, must be released. Raises ``LimitReached``."""
        rate = self._rate_per_min if key.rate_per_min is None else key.rate_per_min
        at_once = self._max_concurrent if key.max_concurrent is None else key.max_concurrent
        if not is_generation:
            at_once = 0
        if not rate and not at_once:
            return None
        request_id = uuid4().hex
        recent, running = KEY_RECENT.format(name=key.name), KEY_RUNNING.format(name=key.name)
        args = (request_id, WINDOW_S, rate, LEASE_S, at_once)
        reached = await self._call(lambda: self._admit(keys=[recent, running], args=args))
        if reached is None:
            self._metrics.key_limits_unknown()
        elif reached[0]:
            raise self._error(key.name, reached, rate, at_once)
        return self._lease(running, request_id) if at_once else None

    def _error(self, name: str, reached: Sequence[int], rate: int, at_once: int) -> LimitReached:
        if reached[0] == _RATE:
            most = counted(rate, "request")
            message = f"Rate limit of API key {name!r} exceeded: {most} per minute"
            error = LimitReached(message, "rate", reached[1] / 1e6)
        else:
            most = counted(at_once, "concurrent generation")
            message = f"Limit of API key {name!r} reached: {most}"
            error = LimitReached(message, "concurrent", _RETRY_S)
        self._metrics.key_refused(error.limit)
        return error

    def _lease(self, running: str, request_id: str) -> "Lease":
        def renew() -> Awaitable[object]:
            return self._call(lambda: self._renew(keys=[running], args=[request_id, LEASE_S]))

        def release() -> Awaitable[object]:
            return self._call(lambda: self._redis.zrem(running, request_id))

        return Lease(renew, release, self.renew_every_s)

    async def _call(self, command: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - as redis has it
        """Return the reply of Redis, or None if there is none."""
        if monotonic() < self._paused_until_s:
            return None
        try:
            return await command()
        except RedisError as error:
            if monotonic() >= self._paused_until_s:
                logger.warning(
                    "limits of API keys are not checked: Redis does not answer: %s", error
                )
            self._paused_until_s = monotonic() + self.pause_s
            return None


class Lease:
    """Lets one generation run, until it is released. Renews itself."""

    def __init__(
        self,
        renew: Callable[[], Awaitable[object]],
        release: Callable[[], Awaitable[object]],
        renew_every_s: float,
    ) -> None:
        self._release = release
        self._is_released = asyncio.Event()
        self._renewing = asyncio.create_task(self._keep(renew, renew_every_s))

    async def release(self) -> None:
        """Free the lease. Further calls change nothing."""
        if self._is_released.is_set():
            return
        self._is_released.set()
        await self._renewing  # else a late renewal could bring the lease back
        await self._release()

    async def _keep(self, renew: Callable[[], Awaitable[object]], pause_s: float) -> None:
        """Ends by the event, not by cancellation, which commands of redis-py may swallow."""
        while True:
            try:
                async with asyncio.timeout(pause_s):
                    await self._is_released.wait()
                    return
            except TimeoutError:
                await renew()
