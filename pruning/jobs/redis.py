"""Redis that is away: one error for whatever redis-py raises meanwhile."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors


class JobStoreUnavailable(ConnectionError):
    """Redis cannot be reached, or refuses to write."""


@contextmanager
def reaching_redis() -> Iterator[None]:
    """Turn what redis-py raises while Redis is away into ``JobStoreUnavailable``."""
    try:
        yield
    except (
        redis_errors.ConnectionError,
        redis_errors.TimeoutError,
        redis_errors.ReadOnlyError,
        redis_errors.OutOfMemoryError,
    ) as error:
        raise JobStoreUnavailable(f"the job store does not answer: {error}") from error
