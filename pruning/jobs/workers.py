"""The workers in Redis, where RQ keeps a name and a hash for each of them."""

import os
import secrets
import socket
from datetime import timedelta

import redis
from rq.utils import now, utcparse
from rq.worker_registration import REDIS_WORKER_KEYS, get_keys

from pruning.jobs.queue import LEASE_S
from pruning.jobs.redis import each_of, redis_errors_translated

_KEY = "rq:worker:"


def new_worker_name() -> str:
    """The name of a worker in this process."""
    return f"{_prefix(os.getpid())}{secrets.token_hex(2)}"


def _prefix(pid: int) -> str:
    return f"{socket.gethostname()}-{pid}-"


class Workers:
    """Every method raises ``JobStoreUnavailable``."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client

    def num_alive(self) -> int:
        """Those with a heartbeat within the last lease: RQ keeps a dead one for a minute."""
        with redis_errors_translated(), self._redis.pipeline(transaction=False) as pipeline:
            for key in get_keys(connection=self._redis):
                pipeline.hget(key, "last_heartbeat")
            seen = each_of(pipeline)
        return sum(_is_recent(at) for at in seen)

    def has_registered(self, pid: int) -> bool:
        """Whether that process of this machine works as a worker."""
        return bool(self._keys_of(pid))

    def forget(self, pid: int) -> None:
        """Remove the worker of a process of this machine that has ended without doing so."""
        if keys := self._keys_of(pid):
            with redis_errors_translated(), self._redis.pipeline() as pipeline:
                pipeline.srem(REDIS_WORKER_KEYS, *keys)
                pipeline.delete(*keys)
                pipeline.execute()

    def _keys_of(self, pid: int) -> list[str]:
        prefix = f"{_KEY}{_prefix(pid)}"
        with redis_errors_translated():
            return [key for key in get_keys(connection=self._redis) if key.startswith(prefix)]


def _is_recent(heartbeat: object) -> bool:
    """Whether this is a time within the last lease, as RQ writes it."""
    try:
        at = utcparse(heartbeat.decode()) if isinstance(heartbeat, bytes) else None
        return at is not None and now() - at < timedelta(seconds=LEASE_S)
    except (ValueError, TypeError, OverflowError):
        return False
