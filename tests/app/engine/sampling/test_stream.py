"""However a stream is left, its request does not run on."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from app.engine.async_engine import AsyncEngine
from app.engine.engine import Engine
from app.engine.sampling.stream import Stream
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import FinishReason, TokenEvent
from app.engine.step import NEVER, Interruption
from tests.support.engine_requests import prompt, request
from tests.support.engine_scenarios import endless, events_of, scenario, until
from tests.support.tiny import generated


class _Recording(Engine):
    """Remembers what was cancelled before its end. Its second step waits until a stream is left,
    as a thread that is kept busy elsewhere may leave it after hundreds of steps.
    """

    def __init__(self, limits: EngineLimits) -> None:
        super().__init__(limits)
        self.aborted: list[str] = []
        self.is_left = threading.Event()
        self._num_steps = 0

    def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
        self._num_steps += 1
        if self._num_steps > 1:
            assert self.is_left.wait(100)
        return super().step(interruption)

    def cancel(
        self, request_id: str, reason: FinishReason = FinishReason.ABORT
    ) -> TokenEvent | None:
        event = super().cancel(request_id, reason)
        if event is not None:
            self.aborted.append(request_id)
        return event


async def _leave(stream: Stream) -> None:
    async with stream:
        await anext(stream)


async def _close(stream: Stream) -> None:
    await anext(stream)
    await stream.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def _close_before_the_first_token(stream: Stream) -> None:
    await stream.aclose()


async def _cancel_the_reader(stream: Stream) -> None:
    reader = asyncio.create_task(events_of(stream))
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


async def _cancel_a_reader_that_closes_nothing(stream: Stream) -> None:
    async def read() -> None:
        async for _ in stream:
            pass

    reader = asyncio.create_task(read())
    await asyncio.sleep(0)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader


@pytest.mark.parametrize(
    "leave",
    [
        _leave,
        _close,
        _close_before_the_first_token,
        _cancel_the_reader,
        _cancel_a_reader_that_closes_nothing,
    ],
)
def test_a_stream_that_is_left_frees_its_slot(leave: Callable[[Stream], Awaitable[None]]) -> None:
    recording = _Recording(EngineLimits(max_num_seqs=1))

    async def run(engine: AsyncEngine) -> None:
        left, waiting = engine.stream(endless(1, "left")), engine.stream(endless(2))
        await leave(left)
        recording.is_left.set()
        await anext(waiting)  # the only slot is its own now
        assert recording.aborted == ["left"]
        await until(lambda: engine.stats().num_running <= 1)
        async with engine.stream(endless(3, "left")):  # and so is the id
            pass
        await waiting.aclose()

    scenario(run, engine=recording)


def test_a_cancelled_stream_still_tells_its_end() -> None:
    async def run(engine: AsyncEngine) -> None:
        async with engine.stream(endless()) as stream:
            await anext(stream)
            stream.cancel()
            stream.cancel()
            *tokens, last = [event async for event in stream]
        assert last.finish_reason is FinishReason.ABORT
        assert last.timings is not None
        assert last.timings.num_tokens == len(tokens) + 1

    scenario(run)


def test_a_subscriber_gets_everything_until_it_leaves() -> None:
    async def run(engine: AsyncEngine) -> None:
        each = request(prompt(9), max_new_tokens=5, ignore_eos=True)
        stream, left = engine.stream(each), engine.stream(endless(1))
        await until(lambda: engine.stats().num_running == 1)  # so some of it has come before
        received: list[TokenEvent | Exception] = []
        stream.subscribe(received.append)
        unwanted: list[TokenEvent | Exception] = []
        left.subscribe(unwanted.append)
        await until(lambda: bool(unwanted))
        await left.aclose()
        num_received = len(unwanted)
        await until(lambda: engine.stats().num_running == 0)
        tokens = [event.token_id for event in received if isinstance(event, TokenEvent)]
        assert tokens == generated(each.variant.model, each.prompt_ids, 5)
        assert len(unwanted) == num_received

    scenario(run)
