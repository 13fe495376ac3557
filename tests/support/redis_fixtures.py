"""Fixtures over a real Valkey, empty for every test; registered by conftest.

The embedded one, unless SLEB_TEST_REDIS_URL names another. Without any, tests fail.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.server.valkey import embedded_valkey
from pruning.jobs import keys
from pruning.jobs.job import JobStatus
from pruning.jobs.store import JobStore

PERMANENT_KEYS = (
    *("sleb:job:*", "sleb:jobs", "sleb:jobs:*", "sleb:outbox", "sleb:sink:*"),
    *("rq:queues", "rq:queue:prune*", "rq:workers*", "rq:wip:prune"),
    *("rq:finished:prune", "rq:failed:prune"),
    "rq:job:*",  # while it is delivered
)


class RedisTestSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="SLEB_TEST_", env_ignore_empty=True, frozen=True)

    redis_url: str | None = None


@pytest.fixture(scope="session")
def _server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if url := RedisTestSettings().redis_url:
        yield url
        return
    data_dir: Path = tmp_path_factory.mktemp("valkey")
    with embedded_valkey(data_dir) as url:
        yield url


@pytest.fixture
def redis_url(_server_url: str) -> Iterator[str]:
    """Of an empty store, for any client; when all are done with it, it must be in order."""
    with redis.Redis.from_url(_server_url) as client:
        client.flushdb()
        yield _server_url
        complaints = disorder(client)
        client.flushdb()
        assert not complaints, f"what the test has left in Redis: {complaints}"


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
def job_store(redis_client: redis.Redis) -> JobStore:
    return JobStore(redis_client)


def disorder(client: redis.Redis) -> list[str]:
    """What no moment may find in Redis, each as a sentence."""
    names = sorted(name.decode() for name in client.scan_iter())
    records = [name for name in names if fnmatchcase(name, keys.RECORD.format(id="prn-*"))]
    statuses = {
        name.split(":")[2]: JobStatus(status.decode())
        for name in records
        if name.count(":") == 2 and isinstance(status := client.hget(name, "status"), bytes)
    }
    return [
        *_eternal(client, names),
        *_ownerless(records, statuses),
        *_misplaced(client, statuses),
    ]


def _eternal(client: redis.Redis, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if client.ttl(name) == -1 and not any(fnmatchcase(name, row) for row in PERMANENT_KEYS):
            yield f"{name} has neither a lifetime nor a row in the table of jobs.py"


def _ownerless(names: Sequence[str], statuses: Mapping[str, JobStatus]) -> Iterator[str]:
    """What is kept of one job goes with its record."""
    for name in names:
        if name.split(":")[2] not in statuses:
            yield f"{name} belongs to no job"


def _misplaced(client: redis.Redis, statuses: Mapping[str, JobStatus]) -> Iterator[str]:
    """The indexes list every job where it belongs, and nothing else."""
    indexes = {keys.INDEX: set(statuses)}
    for status in JobStatus:
        members = {job_id for job_id, found in statuses.items() if found is status}
        indexes[keys.STATUS_INDEX.format(status=status)] = members
    for name, members in indexes.items():
        found: Any = client.zrange(name, 0, -1)
        listed = {member.decode() for member in found}
        if listed != members:
            yield f"{name} is wrong about {sorted(listed ^ members)}"
