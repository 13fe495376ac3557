"""The doctor's checks of Redis: whether it answers, its persistence, and its clock."""

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
    """Check the server of the settings; the embedded one is started if necessary."""
    url = settings.redis_url
    place = "the embedded Valkey" if url is None else without_secrets(url)
    advice = (
        "see valkey.log in the data directory, or set SLEB_REDIS_URL"
        if url is None
        else "start the server, correct SLEB_REDIS_URL, or unset it to use the embedded Valkey"
    )
    try:
        with redis_url(settings) as found_url, _client(found_url) as client:
            server: Any = client.info("server")
            version = server.get("valkey_version", server.get("redis_version", "unknown"))
            said = f"{place} responds, version {version}"
            return [fine(_CHECK, said), persistence(client), eviction(client), clock(client)]
    except redis_errors.AuthenticationError as error:
        advice = "add the password to SLEB_REDIS_URL: redis://:PASSWORD@host:6379"
        return [wrong(_CHECK, f"{place} rejected the login: {error}", advice)]
    except (redis_errors.RedisError, ValkeyUnavailable, OSError, ValueError) as error:
        return [wrong(_CHECK, f"{place} is unavailable: {error}", advice)]


def clock(client: redis.Redis, now_s: float | None = None) -> Finding:
    """Compare the clocks of this machine and the server, which leases and retries rely on."""
    server: Any = client.time()  # seconds, microseconds
    skew_s = (time.time() if now_s is None else now_s) - server[0] - server[1] / 1e6
    said = f"{abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} the job store's clock"
    if abs(skew_s) > MAX_SKEW_S:
        return wrong("clock", said, "synchronize the clocks of both machines with NTP")
    return fine("clock", said)


def persistence(client: redis.Redis) -> Finding:
    """Check that jobs survive a restart of the server."""
    check, advice = "persistence", "set appendonly yes in the server's configuration"
    info: Any = client.info("persistence")
    if info.get("aof_enabled"):
        if info.get("aof_last_write_status") == "err":
            said = "the server cannot write its append-only file"
            return wrong(check, said, "check the server's disk and log")
        return fine(check, "on, with an append-only file")
    try:
        config: Any = client.config_get("save")
    except redis_errors.ResponseError:
        said = "no append-only file, and the server does not report whether it takes snapshots"
        return note(check, said, "make sure that jobs survive a restart: set appendonly yes")
    if config.get("save"):
        said = "snapshots only: a crash loses all changes since the last snapshot"
        return note(check, said, advice)
    said = "off: restarting the server loses all jobs"
    return wrong(check, said, advice)


def eviction(client: redis.Redis) -> Finding:
    """Check that the server does not evict keys when its memory is full."""
    info: Any = client.info("memory")
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if info.get("maxmemory") and policy != "noeviction":
        said = f"maxmemory-policy is {policy}: the server evicts jobs when its memory is full"
        return wrong("eviction", said, "set maxmemory-policy noeviction")
    return fine("eviction", "jobs are never evicted")


def _client(url: str) -> redis.Redis:
    """With RESP2, as RESP3 reports a missing password by an unclear error."""
    once = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(
        url, protocol=2, socket_connect_timeout=2, socket_timeout=5, retry=once
    )
