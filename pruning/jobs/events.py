"""A live feed of job events on the event loop, without a thread per watcher.

Each watcher has its own connection, so that a cancelled one leaves no half-read response in a pool.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from pruning.jobs.job import JobEvent
from pruning.jobs.keys import EVENTS, RECORD
from pruning.jobs.redis import redis_errors_translated
from pruning.jobs.script import read_event, status_of
from pruning.plural import counted

MAX_WATCHERS = 100
POLL_S = 1.0  # between two checks of an idle watcher whether the feed stops or the job is gone
_PAGE = 100
_START = "0-0"


class TooManyWatchers(RuntimeError):
    """The service has reached its limit of event streams."""

    retry_after_s = 10.0

    def __init__(self, max_watchers: int) -> None:
        super().__init__(
            f"too many clients ({counted(max_watchers, 'event stream')}) are following jobs: try "
            "again later, or page through the events with Accept: application/json"
        )


class EventFeed:
    """Streams the events of jobs to up to ``max_watchers`` clients at once."""

    max_watchers = MAX_WATCHERS
    poll_s = POLL_S

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._num_watchers = 0
        self._is_stopped = False

    def check_room(self) -> None:
        """Raises ``TooManyWatchers`` if another watcher would be refused."""
        if self._num_watchers >= self.max_watchers:
            raise TooManyWatchers(self.max_watchers)

    def stop(self) -> None:
        """End all streams within ``poll_s`` seconds."""
        self._is_stopped = True

    @asynccontextmanager
    async def watch(
        self, job_id: str, after: str | None = None
    ) -> AsyncIterator[AsyncIterator[JobEvent | None]]:
        """Iterate over the events after the event ``after``, each once and in order.

        Yields None after every ``poll_s`` seconds without an event. Ends with the last event of a
        job that has ended, or at once if ``after`` is that event or the job does not exist. Earlier
        events may have ended the job as well, before it was retried. Raises ``TooManyWatchers``;
        the iterator raises ``JobStoreUnavailable``.
        """
        self.check_room()
        self._num_watchers += 1
        client = Redis.from_url(
            self._redis_url,
            decode_responses=True,
            socket_connect_timeout=2,
            socket_timeout=5 + self.poll_s,
            retry=Retry(ExponentialBackoff(cap=1, base=0.05), 2),
        )
        try:
            yield self._follow(client, job_id, after or _START)
        finally:
            self._num_watchers -= 1
            await asyncio.shield(client.aclose())  # also if the watcher is cancelled

    async def _follow(
        self, client: Redis, job_id: str, last: str
    ) -> AsyncIterator[JobEvent | None]:
        while not self._is_stopped:
            events, is_over = await _next_page(client, job_id, last)
            for event in events:
                yield event
                last = event.id
            if is_over and len(events) < _PAGE:
                return
            if not events and not await self._wait(client, job_id, last):
                yield None

    async def _wait(self, client: Redis, job_id: str, last: str) -> bool:
        """Wait up to ``poll_s`` for an event after ``last``, and return whether there is one."""
        block_ms = max(1, round(self.poll_s * 1000))  # 0 would block forever
        with redis_errors_translated():
            return bool(
                await client.xread({EVENTS.format(id=job_id): last}, count=1, block=block_ms)
            )


async def _next_page(client: Redis, job_id: str, last: str) -> tuple[list[JobEvent], bool]:
    """Read up to ``_PAGE`` events after ``last``, and whether the job has ended, atomically."""
    with redis_errors_translated():
        async with client.pipeline(transaction=True) as pipeline:
            pipeline.xrange(EVENTS.format(id=job_id), min=f"({last}", count=_PAGE)
            pipeline.hget(RECORD.format(id=job_id), "status")
            entries, status = await pipeline.execute()
    events = [read_event(event_id, fields) for event_id, fields in entries]
    return events, status is None or status_of(status).is_final
