"""The connection to Redis, and one exception for the errors of redis-py while Redis is away.

A server with a full disk answers every write with the error MISCONF until there is space, one with
full memory with OOM, and one that became a replica with READONLY. For redis-py these are errors of
the command. Here they are errors of the connection, so every part of this package, RQ included,
waits as it does for a server that is away.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import redis
from redis import exceptions as redis_errors
from redis.backoff import ExponentialBackoff
from redis.connection import Connection, parse_url
from redis.retry import Retry

UNAVAILABLE = (redis_errors.ConnectionError, redis_errors.TimeoutError)


class JobStoreUnavailable(ConnectionError):
    """Redis cannot be reached, or refuses to write."""


class WritesRefused(redis_errors.ConnectionError):
    """Redis refuses to write, usually for want of disk space or memory."""


REFUSALS = ("MISCONF", "OOM", "READONLY")  # the first words of such errors


def connect(redis_url: str, *, num_retries: int = 60, timeout_s: float = 5) -> redis.Redis:
    """Create a client that retries each command ``num_retries`` times, at most 1 s apart.

    An attempt fails if Redis does not respond within ``timeout_s``.
    """
    found: Any = parse_url(redis_url)  # type: ignore[no-untyped-call]  # of redis  # so it is in redis-py
    return redis.Redis.from_url(
        redis_url,
        connection_class=_connection_class(found.get("connection_class", Connection)),
        socket_connect_timeout=min(2, timeout_s),
        socket_timeout=timeout_s,
        retry=Retry(ExponentialBackoff(cap=1, base=0.05), num_retries),
    )


@contextmanager
def redis_errors_translated() -> Iterator[None]:
    """Raise ``JobStoreUnavailable`` for errors of redis-py that mean that Redis is unavailable."""
    try:
        yield
    except WritesRefused as error:
        raise JobStoreUnavailable(
            f"the job store cannot write; free space on its disk or in its memory, or correct its "
            f"configuration, and it continues by itself: {error}"
        ) from error
    except UNAVAILABLE as error:
        raise JobStoreUnavailable(f"the job store does not respond: {error}") from error


def is_wrong_type(error: Exception) -> bool:
    """Whether Redis has refused a command as the key holds something else."""
    return isinstance(error, redis_errors.ResponseError) and str(error).startswith("WRONGTYPE")


@cache
def _connection_class(kind: type[Connection]) -> type[Connection]:
    """Return a subclass whose parser raises ``WritesRefused`` for ``REFUSALS``."""

    def set_parser(self: Connection, parser_class: Any) -> None:  # noqa: ANN401 - private to redis-py
        kind.set_parser(self, _parser_class(parser_class))  # type: ignore[no-untyped-call]

    return type(f"Translating{kind.__name__}", (kind,), {"set_parser": set_parser})


@cache
def _parser_class(kind: Any) -> Any:  # noqa: ANN401 - private to redis-py
    errors = {**kind.EXCEPTION_CLASSES, **dict.fromkeys(REFUSALS, WritesRefused)}
    return type(f"Translating{kind.__name__}", (kind,), {"EXCEPTION_CLASSES": errors})
