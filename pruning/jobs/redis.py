"""The connection to Redis, and one exception for the errors of redis-py while Redis is away."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from redis import exceptions as redis_errors
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

UNAVAILABLE = (redis_errors.ConnectionError, redis_errors.TimeoutError)


class JobStoreUnavailable(ConnectionError):
    """Redis cannot be reached, or refuses to write."""


def connect(redis_url: str, *, num_retries: int = 60, timeout_s: float = 5) -> redis.Redis:
    """Create a client that retries each command ``num_retries`` times, at most 1 s apart.

    An attempt fails if Redis does not respond within ``timeout_s``.
    """
    return redis.Redis.from_url(
        redis_url,
        socket_connect_timeout=min(2, timeout_s),
        socket_timeout=timeout_s,
        retry=Retry(ExponentialBackoff(cap=1, base=0.05), num_retries),
    )


@contextmanager
def redis_errors_translated() -> Iterator[None]:
    """Raise ``JobStoreUnavailable`` for errors of redis-py that mean that Redis is unavailable."""
    try:
        yield
    except (*UNAVAILABLE, redis_errors.ReadOnlyError, redis_errors.OutOfMemoryError) as error:
        raise JobStoreUnavailable(f"the job store does not respond: {error}") from error
