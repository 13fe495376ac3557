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
from redis.client import Pipeline
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
    parsed: Any = parse_url(redis_url)  # type: ignore[no-untyped-call]  # so it is in redis-py
    return redis.Redis.from_url(
        redis_url,
        connection_class=_connection_class(parsed.get("connection_class", Connection)),
        socket_connect_timeout=min(2, timeout_s),
        socket_timeout=timeout_s,
        retry=Retry(ExponentialBackoff(cap=1, base=0.05), num_retries),
    )


@contextmanager
def redis_errors_translated() -> Iterator[None]:
    """Raise ``JobStoreUnavailable`` for errors of redis-py that mean that Redis is unavailable.

    That is also so where a key holds what this service has not written.
    """
    try:
        yield
    except WritesRefused as error:
        raise JobStoreUnavailable(
            "the job store cannot write: free disk space or memory, or correct its "
            f"configuration; the service then continues by itself ({error})"
        ) from error
    except UNAVAILABLE as error:
        raise JobStoreUnavailable(f"the job store does not respond: {error}") from error
    except redis_errors.ResponseError as error:
        if not is_wrong_type(error):
            raise
        raise JobStoreUnavailable(
            "unexpected content in a key of the job store: restore the job store, or "
            f"remove the key ({error})"
        ) from error


def is_wrong_type(error: Exception) -> bool:
    """Whether Redis has refused a command as the key holds something else."""
    return isinstance(error, redis_errors.ResponseError) and "WRONGTYPE" in str(error)


def each_of(pipeline: Pipeline) -> list[Any]:
    """What the commands return, or the error of one whose key holds something else.

    Any other error is raised, as it is by ``execute``.
    """
    results: list[Any] = pipeline.execute(raise_on_error=False)
    for result in results:
        if isinstance(result, Exception) and not is_wrong_type(result):
            raise result
    return results


@contextmanager
def wrong_types_as_outages() -> Iterator[None]:
    """Raise ``ConnectionError`` of redis-py for a key that holds something else than it should.

    A worker waits for a server that is away, and would end for an error of a command.
    """
    try:
        yield
    except redis_errors.ResponseError as error:
        if not is_wrong_type(error):
            raise
        raise redis_errors.ConnectionError(f"restore the job store: {error}") from error


@cache
def _connection_class(kind: type[Connection]) -> type[Connection]:
    """Return a subclass whose parser raises ``WritesRefused`` for ``REFUSALS``."""

    def set_parser(self: Connection, parser_class: Any) -> None:  # noqa: ANN401 - private to redis-py
        kind.set_parser(self, _parser_class(parser_class))  # type: ignore[no-untyped-call]  # redis-py's

    return type(f"Translating{kind.__name__}", (kind,), {"set_parser": set_parser})


@cache
def _parser_class(kind: Any) -> Any:  # noqa: ANN401 - private to redis-py
    errors = {**kind.EXCEPTION_CLASSES, **dict.fromkeys(REFUSALS, WritesRefused)}
    return type(f"Translating{kind.__name__}", (kind,), {"EXCEPTION_CLASSES": errors})
