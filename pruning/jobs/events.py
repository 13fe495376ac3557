"""The events of jobs as they come, on the event loop: watching takes no thread, and little else.

Every watcher has a connection of its own, so one that is cut off leaves nothing behind in a pool.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from pruning.jobs.job import JobEvent, JobStatus
from pruning.jobs.keys import EVENTS, RECORD
from pruning.jobs.redis import redis_errors_translated
from pruning.jobs.script import read_event

MAX_WATCHERS = 100
LOOK_EVERY_S = 1.0  # how soon a quiet watcher learns that the feed stops or its job is gone
_PAGE = 100
_START = "0-0"


class TooManyWatchers(RuntimeError):
    """As many clients follow jobs as the service allows."""

    retry_after_s = 10.0

    def __init__(self, max_watchers: int) -> None:
        super().__init__(
            f"{max_watchers} clients follow jobs already: ask again later, or read the events as "
            f"pages, with Accept: application/json"
        )


class EventFeed:
    """Follows jobs for up to ``max_watchers`` clients at once."""

    max_watchers = MAX_WATCHERS
    look_every_s = LOOK_EVERY_S

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._num_watchers = 0
        self._is_stopped = False

    def stop(self) -> None:
        """End what is followed within ``look_every_s``."""
        self._is_stopped = True

    @asynccontextmanager
    async def watch(
        self, job_id: str, after: str | None = None
    ) -> AsyncIterator[AsyncIterator[JobEvent | None]]:
        """The events behind ``after``, or behind what is left of it, each once and in order.

        None among them whenever nothing came for ``look_every_s``. They end with the one that made
        the job final; at once if that is behind ``after``, or if there is no such job any more.
        Raises ``TooManyWatchers``; the iterator, ``JobStoreUnavailable``.
        """
        if self._num_watchers >= self.max_watchers:
            raise TooManyWatchers(self.max_watchers)
        self._num_watchers += 1
        client = self._connect()
        try:
            yield self._follow(client, job_id, after or _START)
        finally:
            self._num_watchers -= 1
            await asyncio.shield(client.aclose())  # also while a watcher is being cancelled

    async def _follow(
        self, client: Redis, job_id: str, last: str
    ) -> AsyncIterator[JobEvent | None]:
        while not self._is_stopped:
            events, is_over = await _look(client, job_id, last)
            for event in events:
                yield event
                last = event.id
                if JobStatus(event.data["status"]).is_final:
                    return
            if not events:
                if is_over:
                    return
                if not await self._wait(client, job_id, last):
                    yield None

    async def _wait(self, client: Redis, job_id: str, last: str) -> bool:
        """Until there is an event behind ``last``, for ``look_every_s`` at most."""
        block_ms = max(1, round(self.look_every_s * 1000))  # 0 would be for ever
        with redis_errors_translated():
            return bool(
                await client.xread({EVENTS.format(id=job_id): last}, count=1, block=block_ms)
            )

    def _connect(self) -> Redis:
        return Redis.from_url(
            self._redis_url,
            decode_responses=True,
            socket_connect_timeout=2,
            socket_timeout=5 + self.look_every_s,
            retry=Retry(ExponentialBackoff(cap=1, base=0.05), 2),
        )


async def _look(client: Redis, job_id: str, last: str) -> tuple[list[JobEvent], bool]:
    """A page of what is behind ``last``, and whether no more can come; both of one moment."""
    with redis_errors_translated():
        async with client.pipeline(transaction=True) as pipeline:
            pipeline.xrange(EVENTS.format(id=job_id), min=f"({last}", count=_PAGE)
            pipeline.hget(RECORD.format(id=job_id), "status")
            entries, status = await pipeline.execute()
    events = [read_event(event_id, fields) for event_id, fields in entries]
    return events, status is None or JobStatus(status).is_final
