"""How much one key may ask for: requests in a minute, and generations at once.

All API processes of one Redis count together. It holds two sorted sets of each key: when the
requests of the last minute came, and until when each running generation has its place. A place is
a lease, which is renewed while it is used; so what a process held that died is free again soon.
One script looks at both, so that what is refused counts for neither, and the clock is Redis's.

A Redis that does not answer refuses nobody: generation needs none of it, the limits of the engine
hold all the same, and an outage of the job store would else be one of everything. It is logged,
and counted as ``sleb_key_limits_unknown_total``.
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

logger = logging.getLogger(__name__)

RECENT = "sleb:key:{name}:recent"  # of a request: when it came
RUNNING = "sleb:key:{name}:running"  # of a generation: until when its place is its own
WINDOW_S = 60
LEASE_S = 30.0
RENEWED_EVERY_S = LEASE_S / 3
REST_S = 1.0  # how long a Redis that did not answer is left alone
_ANSWER_S = 0.5  # how long anybody waits for it
_NEXT_TRY_S = 1.0  # when a place may be free, which nobody knows
_RATE = 1  # as the script below says it

# KEYS recent, running. ARGV the request's id, window, rate, lease, most at once; 0 is no limit.
# Returns {0 or the limit that is reached, microseconds until it may be worth another try}.
_TAKE = """
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
# KEYS running. ARGV the request's id, lease.
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
    """``rate_per_min`` and ``max_concurrent`` are those of keys without their own; None is any."""

    renewed_every_s = RENEWED_EVERY_S
    rest_s = REST_S

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
            socket_connect_timeout=_ANSWER_S,
            socket_timeout=_ANSWER_S,
            retry=Retry(ExponentialBackoff(cap=0.05, base=0.01), 1),
        )
        self._take = self._redis.register_script(_TAKE)
        self._renew = self._redis.register_script(_RENEW)
        self._rests_until_s = -math.inf

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def admit(self, key: ApiKey, *, is_generation: bool) -> "Place | None":
        """Count a request. Its place, if it has one, has to be left. Raises ``LimitReached``."""
        rate = self._rate_per_min if key.rate_per_min is None else key.rate_per_min
        at_once = self._max_concurrent if key.max_concurrent is None else key.max_concurrent
        if not is_generation:
            at_once = 0
        if not rate and not at_once:
            return None
        request_id = uuid4().hex
        recent, running = RECENT.format(name=key.name), RUNNING.format(name=key.name)
        args = (request_id, WINDOW_S, rate, LEASE_S, at_once)
        reached = await self._ask(lambda: self._take(keys=[recent, running], args=args))
        if reached is None:
            self._metrics.key_limits_unknown()
        elif reached[0]:
            raise self._refusal(key.name, reached, rate, at_once)
        return self._place(running, request_id) if at_once else None

    def _refusal(self, name: str, reached: Sequence[int], rate: int, at_once: int) -> LimitReached:
        if reached[0] == _RATE:
            message = f"Rate limit of API key {name!r} exceeded: {rate} requests per minute"
            refusal = LimitReached(message, "rate", reached[1] / 1e6)
        else:
            message = f"Limit of API key {name!r} reached: {at_once} concurrent generations"
            refusal = LimitReached(message, "concurrent", _NEXT_TRY_S)
        self._metrics.key_refused(refusal.limit)
        return refusal

    def _place(self, running: str, request_id: str) -> "Place":
        def renew() -> Awaitable[object]:
            return self._ask(lambda: self._renew(keys=[running], args=[request_id, LEASE_S]))

        def give_back() -> Awaitable[object]:
            return self._ask(lambda: self._redis.zrem(running, request_id))

        return Place(renew, give_back, self.renewed_every_s)

    async def _ask(self, question: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - as redis has it
        """What Redis answers, or None if it does not."""
        if monotonic() < self._rests_until_s:
            return None
        try:
            return await question()
        except RedisError as error:
            if monotonic() >= self._rests_until_s:
                logger.warning(
                    "nobody looks at the limits of keys: Redis does not answer: %s", error
                )
            self._rests_until_s = monotonic() + self.rest_s
            return None


class Place:
    """Of a generation that runs; held until it is left."""

    def __init__(
        self,
        renew: Callable[[], Awaitable[object]],
        give_back: Callable[[], Awaitable[object]],
        renewed_every_s: float,
    ) -> None:
        self._give_back = give_back
        self._is_left = asyncio.Event()
        self._renewing = asyncio.create_task(self._keep(renew, renewed_every_s))

    async def leave(self) -> None:
        """As often as one likes; only the first time counts."""
        if self._is_left.is_set():
            return
        self._is_left.set()
        await self._renewing  # or it might still renew what is given back
        await self._give_back()

    async def _keep(self, renew: Callable[[], Awaitable[object]], pause_s: float) -> None:
        """Ends when it is told to, and is not cancelled: a command of redis-py may swallow that."""
        while True:
            try:
                async with asyncio.timeout(pause_s):
                    await self._is_left.wait()
                    return
            except TimeoutError:
                await renew()
