"""Fixtures over a real Valkey, empty for every test; registered by conftest.

The embedded one, unless SLEB_TEST_REDIS_URL names another. Without any, tests fail.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import redis
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.valkey import embedded_valkey
from pruning import jobs, queue
from pruning.jobs import JobStore


class RedisTestSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SLEB_TEST_", env_ignore_empty=True, frozen=True)

    redis_url: str | None = None


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if url := RedisTestSettings().redis_url:
        yield url
        return
    data_dir: Path = tmp_path_factory.mktemp("valkey")
    with embedded_valkey(data_dir) as url:
        yield url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """Empty at the start; at the end, every key must have a lifetime or be known to stay."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()
        yield client
        leaked = leaked_keys(client)
        client.flushdb()
        assert not leaked, f"keys with neither a TTL nor a row in the table of jobs.py: {leaked}"


@pytest.fixture
def job_store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client)


def leaked_keys(client: redis.Redis) -> list[str]:
    """Keys that would stay for ever without anybody having said so."""
    names = [name.decode() for name in client.scan_iter()]
    forever = [name for name in names if client.ttl(name) == -1]
    known = (*jobs.PERMANENT_KEYS, *queue.PERMANENT_KEYS)
    return [name for name in forever if not any(fnmatchcase(name, row) for row in known)]
