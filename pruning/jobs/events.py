"""A live feed of job events on the event loop, without a thread per watcher.

Watchers that wait for the same event share one command and its result, so a hundred of them are no
more work than one. A watcher that is cancelled leaves the command to the others.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

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
_Result = TypeVar("_Result")


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
        self._commands: _SharedCommands | None = None

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
        self._commands = self._commands or _SharedCommands(self._redis_url, self.poll_s)
        try:
            yield self._follow(self._commands, job_id, after or _START)
        finally:
            self._num_watchers -= 1
            if self._num_watchers == 0:
                unused, self._commands = self._commands, None
                await asyncio.shield(unused.close())  # also if the watcher is cancelled

    async def _follow(
        self, commands: "_SharedCommands", job_id: str, last: str
    ) -> AsyncIterator[JobEvent | None]:
        while not self._is_stopped:
            events, is_over = await commands.result_of(_next_page, job_id, last)
            for event in events:
                yield event
                last = event.id
            if is_over and len(events) < _PAGE:
                return
            if not events and not await commands.result_of(self._wait, job_id, last):
                yield None

    async def _wait(self, client: Redis, job_id: str, last: str) -> bool:
        """Wait up to ``poll_s`` for an event after ``last``, and return whether there is one."""
        block_ms = max(1, round(self.poll_s * 1000))  # 0 would block forever
        with redis_errors_translated():
            return bool(
                await client.xread({EVENTS.format(id=job_id): last}, count=1, block=block_ms)
            )


class _SharedCommands:
    """Runs each command once for all that want its result at the same time."""

    def __init__(self, redis_url: str, poll_s: float) -> None:
        self._client = Redis.from_url(
            redis_url,
            decode_responses=True,
            socket_connect_timeout=2,
            socket_timeout=5 + poll_s,
            retry=Retry(ExponentialBackoff(cap=1, base=0.05), 2),
        )
        self._running: dict[Any, asyncio.Task[Any]] = {}

    async def result_of(
        self, command: Callable[[Redis, str, str], Awaitable[_Result]], job_id: str, last: str
    ) -> _Result:
        key = (command, job_id, last)
        task: asyncio.Task[_Result] | None = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.ensure_future(command(self._client, job_id, last))
            task.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        running = tuple(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._client.aclose()


async def _next_page(client: Redis, job_id: str, last: str) -> tuple[list[JobEvent], bool]:
    """Read up to ``_PAGE`` events after ``last``, and whether the job has ended, atomically."""
    with redis_errors_translated():
        async with client.pipeline(transaction=True) as pipeline:
            pipeline.xrange(EVENTS.format(id=job_id), min=f"({last}", count=_PAGE)
            pipeline.hget(RECORD.format(id=job_id), "status")
            entries, status = await pipeline.execute()
    events = [read_event(event_id, fields) for event_id, fields in entries]
    return events, status is None or status_of(status).is_final
