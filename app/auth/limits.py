"""Limits of each API key: requests per minute, and concurrent generations; and tokens per minute of
its tenant.

All API processes of one Redis count together. It holds two sorted sets per key: the times of the
requests of the last minute, and the leases of running generations. Leases are renewed while they
are held, so those of a process that dies expire. Of a tenant, it holds the tokens of each second.
They are charged when a generation or a score ends. One script checks all limits, by the clock of
Redis, and a refused request counts for none.

While Redis does not respond, all requests are admitted: generation does not need Redis, and the
limits of the engine still hold. This is logged and counted as ``sleb_key_limits_unknown_total``.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import astuple, dataclass
from time import monotonic
from typing import Any
from uuid import uuid4

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from app.auth.keys import NO_QUOTA, ApiKey, Quota, caller
from app.engine.scheduling.sequence import FinishReason, Timings
from app.metrics.metrics import Labels, Metrics
from pruning.jobs.keys import KEY_RECENT, KEY_RUNNING, TENANT_TOKENS
from pruning.plural import counted

logger = logging.getLogger(__name__)

WINDOW_S = 60
LEASE_S = 30.0
RENEW_EVERY_S = LEASE_S / 3
PAUSE_S = 1.0  # after a Redis command failed
_TIMEOUT_S = 0.5  # of a Redis command
_MAX_CONNECTIONS = 50
_RETRY_S = 1.0  # at the limit of concurrent generations, whose end is unknown
_LIMITS = ("", "rate", "concurrent", "tokens")  # by the numbers that the script below returns

# KEYS tokens. ARGV window, tokens to charge.
_CHARGE = """
if tonumber(ARGV[2]) > 0 then
    redis.call('HINCRBY', KEYS[1], redis.call('TIME')[1], ARGV[2])
    redis.call('EXPIRE', KEYS[1], ARGV[1])
end
"""
# KEYS recent, running, tokens. ARGV request id, window, rate, lease, concurrency, tokens; of these
# limits, 0 is off.
# Returns {0 or the number of the limit that is reached, microseconds until a retry may succeed}.
_ADMIT = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local id, window, rate = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lease, at_once = tonumber(ARGV[4]), tonumber(ARGV[5])
local tokens = tonumber(ARGV[6])
if rate > 0 then
    redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - window)
    local last = redis.call('ZRANGE', KEYS[1], -rate, -rate, 'WITHSCORES')[2]
    if last then return {1, math.ceil((last + window - now) * 1e6)} end
end
if tokens > 0 then
    local rows, seconds, used = redis.call('HGETALL', KEYS[3]), {}, 0
    for at = 1, #rows, 2 do
        local second = tonumber(rows[at])
        if second + window <= now then
            redis.call('HDEL', KEYS[3], rows[at])
        else
            seconds[#seconds + 1] = {second, tonumber(rows[at + 1])}
            used = used + tonumber(rows[at + 1])
        end
    end
    table.sort(seconds, function(one, other) return one[1] < other[1] end)
    for at = 1, used >= tokens and #seconds or 0 do
        used = used - seconds[at][2]
        if used < tokens then
            return {3, math.ceil((seconds[at][1] + window - now) * 1e6)}
        end
    end
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


class TokenQuotaReached(RuntimeError):
    """The tenant has used up its tokens of the last minute."""

    def __init__(self, tenant: str, tokens_per_min: int, retry_after_s: float) -> None:
        self.retry_after_s = max(1, math.ceil(retry_after_s))
        super().__init__(
            f"Token quota of tenant {tenant!r} exceeded: {counted(tokens_per_min, 'token')} "
            f"per minute. Retry in {self.retry_after_s} s."
        )


class KeyLimits:
    """``rate_per_min`` and ``max_concurrent`` are the defaults of keys; None is no limit.

    ``default_quota`` is that of tenants. Bound to one event loop.
    """

    renew_every_s = RENEW_EVERY_S
    pause_s = PAUSE_S

    def __init__(
        self,
        redis_url: str,
        metrics: Metrics,
        *,
        rate_per_min: int | None = None,
        max_concurrent: int | None = None,
        default_quota: Quota = NO_QUOTA,
    ) -> None:
        self._metrics = metrics
        self._default_quota = default_quota
        self._rate_per_min = rate_per_min or 0
        self._max_concurrent = max_concurrent or 0
        self._redis = Redis.from_url(
            redis_url,
            socket_connect_timeout=_TIMEOUT_S,
            socket_timeout=_TIMEOUT_S,
            retry=Retry(ExponentialBackoff(cap=0.05, base=0.01), 1),
        )
        self._connections = asyncio.Semaphore(_MAX_CONNECTIONS)  # redis-py's would raise an error
        self._admit = self._redis.register_script(_ADMIT)
        self._renew = self._redis.register_script(_RENEW)
        self._charge = self._redis.register_script(_CHARGE)
        self._to_charge: Counter[str] = Counter()  # tokens by tenant
        self._charging: dict[str, asyncio.Task[None]] = {}  # by tenant
        self._paused_until_s = -math.inf

    async def aclose(self) -> None:
        while self._charging:
            await asyncio.wait(self._charging.values())
        await self._redis.aclose()

    async def admit(self, key: ApiKey, *, is_generation: bool) -> "Lease | None":
        """Count a request. Its lease, if any, must be released.

        Raises ``LimitReached`` or ``TokenQuotaReached``.
        """
        limits = self._limits_of(key, is_generation=is_generation)
        if not any(astuple(limits)):
            return None
        request_id = uuid4().hex
        if limits.tokens:
            await self._charged(key.owner)
        running = KEY_RUNNING.format(name=key.name)
        keys = [KEY_RECENT.format(name=key.name), running, TENANT_TOKENS.format(name=key.owner)]
        args = (request_id, WINDOW_S, limits.rate, LEASE_S, limits.at_once, limits.tokens)
        reached = await self._call(lambda: self._admit(keys=keys, args=args))
        if reached is None:
            self._metrics.key_limits_unknown.inc()
        elif reached[0]:
            raise self._error(key, reached, limits)
        return Lease(self, running, request_id) if limits.at_once else None

    def finished(
        self, labels: Labels, num_prompt_tokens: int, _reason: FinishReason, timings: Timings
    ) -> None:
        """Charge a generation that has ended to the tenant that has asked for it."""
        key = labels.origin.get(caller)
        if key is None or labels.traffic == "shadow":
            return
        has_begun = timings.scheduled_s is not None
        self._add(key, timings.num_tokens + (num_prompt_tokens if has_begun else 0))

    def scored(self, num_tokens: int) -> None:
        """Charge a text of which the caller has been told the likelihood."""
        if (key := caller.get()) is not None:
            self._add(key, num_tokens)

    def _add(self, key: ApiKey, num_tokens: int) -> None:
        if self._tokens_per_min(key):
            self._to_charge[key.owner] += num_tokens
            self._begin_to_charge(key.owner)

    def _begin_to_charge(self, tenant: str) -> None:
        """One command at a time charges what has ended meanwhile."""
        if tenant in self._charging or not self._to_charge[tenant]:
            return
        args = (WINDOW_S, self._to_charge.pop(tenant))
        keys = [TENANT_TOKENS.format(name=tenant)]

        async def charge() -> None:
            await self._call(lambda: self._charge(keys=keys, args=args))

        def end(_task: asyncio.Task[None]) -> None:
            del self._charging[tenant]
            self._begin_to_charge(tenant)

        self._charging[tenant] = asyncio.create_task(charge())
        self._charging[tenant].add_done_callback(end)

    async def _charged(self, tenant: str) -> None:
        """Wait until all that has ended in this process is charged.

        A client may send its next request at once. What ends while one command is on its way is
        charged by the next one, which nothing cancels.
        """
        for _ in range(2):
            if (charging := self._charging.get(tenant)) is not None:
                await asyncio.wait([charging])

    def _tokens_per_min(self, key: ApiKey) -> int:
        return key.quota.over(self._default_quota).tokens_per_min or 0

    def _limits_of(self, key: ApiKey, *, is_generation: bool) -> "_Limits":
        rate = self._rate_per_min if key.rate_per_min is None else key.rate_per_min
        if not is_generation:
            return _Limits(rate)
        at_once = self._max_concurrent if key.max_concurrent is None else key.max_concurrent
        return _Limits(rate, at_once, self._tokens_per_min(key))

    def _error(
        self, key: ApiKey, reached: Sequence[int], limits: "_Limits"
    ) -> LimitReached | TokenQuotaReached:
        limit, retry_after_s = _LIMITS[reached[0]], reached[1] / 1e6
        self._metrics.key_refusals.labels(limit).inc()
        if limit == "tokens":
            return TokenQuotaReached(key.owner, limits.tokens, retry_after_s)
        if limit == "rate":
            most = counted(limits.rate, "request")
            message = f"Rate limit of API key {key.name!r} exceeded: {most} per minute"
            return LimitReached(message, limit, retry_after_s)
        most = counted(limits.at_once, "concurrent generation")
        return LimitReached(f"Limit of API key {key.name!r} reached: {most}", limit, _RETRY_S)

    async def renew(self, running: str, request_id: str) -> None:
        """Renew a lease of this key in Redis."""
        await self._call(lambda: self._renew(keys=[running], args=[request_id, LEASE_S]))

    async def release(self, running: str, request_id: str) -> None:
        """Free a lease of this key in Redis."""
        await self._call(lambda: self._redis.zrem(running, request_id))

    async def _call(self, command: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401 - as redis has it
        """Return the reply of Redis, or None if there is none."""
        async with self._connections:
            if monotonic() < self._paused_until_s:
                return None
            try:
                return await command()
            except RedisError as error:
                if monotonic() >= self._paused_until_s:
                    logger.warning(
                        "limits of API keys are not enforced, because Redis does not respond: %s",
                        error,
                    )
                self._paused_until_s = monotonic() + self.pause_s
                return None


@dataclass(frozen=True)
class _Limits:
    """Those that hold for a request; 0 is no limit."""

    rate: int
    at_once: int = 0
    tokens: int = 0


class Lease:
    """Lets one generation run, until it is released. Renews itself."""

    def __init__(self, limits: KeyLimits, running: str, request_id: str) -> None:
        self._limits = limits
        self._of_redis = (running, request_id)  # the key of the leases, and this one
        self._is_released = asyncio.Event()
        self._renewing = asyncio.create_task(self._keep())

    async def release(self) -> None:
        """Free the lease. Further calls change nothing."""
        if self._is_released.is_set():
            return
        self._is_released.set()
        await self._renewing  # else a late renewal could bring the lease back
        await self._limits.release(*self._of_redis)

    async def _keep(self) -> None:
        """Ends by the event, not by cancellation, which commands of redis-py may swallow."""
        while True:
            try:
                async with asyncio.timeout(self._limits.renew_every_s):
                    await self._is_released.wait()
                    return
            except TimeoutError:
                await self._limits.renew(*self._of_redis)
