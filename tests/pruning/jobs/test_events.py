"""Many watchers of one job: they share their commands, and one that leaves disturbs none."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis

from pruning.jobs.events import EventFeed
from pruning.jobs.job import JobEvent
from pruning.jobs.store import JobStore
from pruning.spec.prune import PruneSpec

_NUM_WATCHERS = 50


@pytest.fixture
def job_id(job_store: JobStore) -> str:
    return job_store.create(PruneSpec("tiny", num_remove=1)).id


async def messages(events: AsyncIterator[JobEvent | None]) -> list[str]:
    return [event.message async for event in events if event is not None]


async def has_waited(feed: EventFeed, job_id: str) -> None:
    """Return when a watcher that begins now has waited for an event in vain."""
    async with feed.watch(job_id) as events:
        while await anext(events) is not None:
            pass


async def watched(feed: EventFeed, job_id: str) -> list[str]:
    async with feed.watch(job_id) as events:
        return await messages(events)


def test_the_watchers_of_a_job_share_their_commands(
    redis_url: str, redis_client: redis.Redis, job_store: JobStore, job_id: str
) -> None:
    num_others = len(redis_client.client_list())

    async def check() -> list[list[str]]:
        feed = EventFeed(redis_url)
        watchers = [asyncio.create_task(watched(feed, job_id)) for _ in range(_NUM_WATCHERS)]
        await has_waited(feed, job_id)
        assert len(redis_client.client_list()) - num_others <= 3
        watchers[0].cancel()
        await asyncio.to_thread(job_store.cancel, job_id)
        return await asyncio.gather(*watchers[1:])

    received = asyncio.run(check())
    assert received == [received[0]] * (_NUM_WATCHERS - 1)
    assert received[0][0] == "job created"
    assert len(received[0]) > 1
    assert len(redis_client.client_list()) <= num_others
