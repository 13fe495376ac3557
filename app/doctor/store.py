"""The doctor's looks at Redis: is it there, does it keep what it is told, and what time is it."""

import time
from typing import Any

import redis
from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from app.doctor.finding import Finding, fine, note, wrong
from app.server.valkey import ValkeyUnavailable, redis_url
from app.settings import without_secrets
from pruning.config import Settings

MAX_SKEW_S = 5.0  # a third of a worker's lease
_CHECK = "job store"


def store(settings: Settings) -> list[Finding]:
    """Of the server that the settings name; the embedded one is started if need be."""
    url = settings.redis_url
    place = "the embedded Valkey" if url is None else without_secrets(url)
    advice = (
        "look into valkey.log in the data directory, or set SLEB_REDIS_URL"
        if url is None
        else "start it, correct SLEB_REDIS_URL, or unset it for the embedded Valkey"
    )
    try:
        with redis_url(settings) as found_url, _client(found_url) as client:
            server: Any = client.info("server")
            version = server.get("valkey_version", server.get("redis_version", "unknown"))
            said = f"{place} answers, version {version}"
            return [fine(_CHECK, said), *_keeps(client), clock(client)]
    except redis_errors.AuthenticationError as error:
        asks = "put its password into SLEB_REDIS_URL: redis://:PASSWORD@host:6379"
        return [wrong(_CHECK, f"{place} does not let us in: {error}", asks)]
    except (redis_errors.RedisError, ValkeyUnavailable, OSError, ValueError) as error:
        return [wrong(_CHECK, f"{place} cannot be used: {error}", advice)]


def clock(client: redis.Redis, now_s: float | None = None) -> Finding:
    """This machine's, by default, against the server's: leases and retries compare the two."""
    answered: Any = client.time()
    skew_s = (time.time() if now_s is None else now_s) - answered[0] - answered[1] / 1e6
    said = f"{abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} that of the job store"
    if abs(skew_s) > MAX_SKEW_S:
        return wrong("clock", said, "let NTP set the clocks of both machines")
    return fine("clock", said)


def persistence(client: redis.Redis) -> Finding:
    """Whether jobs outlive a restart of the server."""
    check = "persistence"
    found: Any = client.info("persistence")
    if found.get("aof_enabled"):
        if found.get("aof_last_write_status") == "err":
            said = "the server cannot write its append-only file"
            return wrong(check, said, "look at the server's disk and log")
        return fine(check, "on, an append-only file")
    try:
        config: Any = client.config_get("save")
    except redis_errors.ResponseError:
        said = "no append-only file, and the server does not tell whether it takes snapshots"
        return note(check, said, "make sure that jobs outlive a restart: appendonly yes")
    if config.get("save"):
        said = "snapshots only: a crash loses the changes since the last one"
        return note(check, said, "appendonly yes in the server's configuration loses a second's")
    said = "off: all jobs are gone when the server restarts"
    return wrong(check, said, "set appendonly yes in the server's configuration")


def eviction(client: redis.Redis) -> Finding:
    """Whether the server drops keys by itself when its memory is full."""
    found: Any = client.info("memory")
    policy = str(found.get("maxmemory_policy", "noeviction"))
    if found.get("maxmemory") and policy != "noeviction":
        said = f"maxmemory-policy is {policy}: a full server drops jobs"
        return wrong("eviction", said, "set maxmemory-policy noeviction")
    return fine("eviction", "no job is dropped for want of memory")


def _keeps(client: redis.Redis) -> list[Finding]:
    return [persistence(client), eviction(client)]


def _client(url: str) -> redis.Redis:
    """Of the older protocol: with the newer, a missing password is told in riddles."""
    once = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(
        url, protocol=2, socket_connect_timeout=2, socket_timeout=5, retry=once
    )
