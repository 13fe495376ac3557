import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from app.engine.async_engine import AsyncEngine, EngineStopped
from app.engine.engine import Engine, PromptTooLong
from app.engine.scheduling.admission import Overloaded
from app.engine.scheduling.sequence import FinishReason, Request, RequestRefused, TokenEvent
from app.engine.step import NEVER, Interruption
from tests.support.engine_requests import prompt, request, variant
from tests.support.engine_scenarios import endless, events_of, scenario, until
from tests.support.tiny import MAX_POSITIONS, generated


class TorchOperations(TorchDispatchMode):
    """Notes which operations of torch run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # so it is in torch
        self.names: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_streams_run_together_and_give_what_generate_gives() -> None:
    requests = [
        request(prompt(length, seed=length), variant(bool(length % 2)), max_new_tokens=10)
        for length in (3, 8, 20, 5)
    ]

    async def run(engine: AsyncEngine) -> None:
        results = await asyncio.gather(*(events_of(engine.stream(each)) for each in requests))
        for each, events in zip(requests, results, strict=True):
            tokens = [event.token_id for event in events]
            assert tokens == generated(each.variant.model, each.prompt_ids, 10)
            assert all(event.timings is None for event in events[:-1])
            assert events[-1].timings is not None
        assert engine.stats().num_running == 0

    scenario(run)


def test_the_event_loop_computes_nothing_for_a_prepared_variant() -> None:
    """It would keep threads of OpenMP, beside which those of the steps sleep at each barrier."""
    engine = AsyncEngine(Engine(), max_waiting=1)
    engine.prepare(variant())
    with TorchOperations() as operations:
        engine.max_len(variant())
    assert not operations.names


def test_refusals_come_before_any_event() -> None:
    async def run(engine: AsyncEngine) -> None:
        with pytest.raises(PromptTooLong):
            engine.stream(request([3] * 500))
        async with engine.stream(endless(request_id="a")):
            with pytest.raises(RequestRefused, match="already open"):
                engine.stream(request(request_id="a"))

    scenario(run)


def test_too_many_waiting_requests_are_turned_away() -> None:
    async def run(engine: AsyncEngine) -> None:
        open_streams = [engine.stream(endless(seed)) for seed in range(3)]
        with pytest.raises(Overloaded, match="the queue is full") as refusal:
            engine.stream(endless(3))
        assert 1 <= refusal.value.retry_after_s <= 60
        await open_streams[0].aclose()
        await until(lambda: engine.stats().num_running + engine.stats().num_waiting == 2)
        async with engine.stream(endless(3)):
            pass
        for stream in open_streams:
            await stream.aclose()

    scenario(run, max_num_seqs=1, max_waiting=2)


def test_too_many_waiting_tokens_are_turned_away_too() -> None:
    async def run(engine: AsyncEngine) -> None:
        waiting = [engine.stream(endless(seed)) for seed in range(2)]
        with pytest.raises(Overloaded, match="tokens are waiting"):
            engine.stream(endless(2))
        await anext(waiting[0])
        async with engine.stream(endless(2)):
            pass
        for stream in waiting:
            await stream.aclose()

    scenario(run, max_num_seqs=1, max_waiting_tokens=2 * MAX_POSITIONS)


def test_a_group_is_taken_whole_or_not_at_all() -> None:
    async def run(engine: AsyncEngine) -> None:
        with pytest.raises(PromptTooLong):
            engine.streams([request(prompt(5)), request([3] * 500)])
        first = engine.stream(endless())
        with pytest.raises(Overloaded):
            engine.streams([endless(1), endless(2)])
        with pytest.raises(RequestRefused, match="the request has 4"):
            engine.streams([endless(seed) for seed in range(4)])
        assert engine.stats().num_running + engine.stats().num_waiting <= 1
        for stream in [first, *engine.streams([endless(1)])]:
            await stream.aclose()

    scenario(run, max_num_seqs=1, max_waiting=1)


def test_a_deadline_ends_what_runs_and_what_waits() -> None:
    async def run(engine: AsyncEngine) -> None:
        deadline_s = time.monotonic() + 0.05
        hurried = [replace(endless(seed), deadline_s=deadline_s) for seed in range(2)]
        results = await asyncio.gather(*(events_of(engine.stream(each)) for each in hurried))
        for events in results:
            assert events[-1].finish_reason in {FinishReason.TIMEOUT, FinishReason.LENGTH}
        assert results[1][-1].finish_reason is FinishReason.TIMEOUT

    scenario(run, max_num_seqs=1)


def test_every_end_is_told_even_to_those_who_have_left() -> None:
    ends: dict[str, FinishReason | None] = {}

    def on_end(each: Request, last: TokenEvent) -> None:
        assert each.request_id not in ends
        assert last.timings is not None
        ends[each.request_id] = last.finish_reason

    async def run(engine: AsyncEngine) -> None:
        await events_of(engine.stream(request(request_id="read", max_new_tokens=2), on_end))
        async with engine.stream(endless(request_id="left"), on_end) as stream:
            await anext(stream)
        stopped = engine.stream(endless(request_id="stopped"), on_end)
        stopped.cancel(FinishReason.STOP)
        await events_of(stopped)
        engine.stream(endless(request_id="aborted"), on_end)
        await engine.stop()

    scenario(run)
    assert ends == {
        "read": FinishReason.LENGTH,
        "left": FinishReason.ABORT,
        "stopped": FinishReason.STOP,
        "aborted": FinishReason.ABORT,
    }


def test_stopping_lets_running_requests_finish_and_takes_no_new_ones() -> None:
    async def run(engine: AsyncEngine) -> None:
        each = request(prompt(9), max_new_tokens=20)
        reader = asyncio.create_task(events_of(engine.stream(each)))
        stopping = asyncio.create_task(engine.stop(drain_s=30))
        await asyncio.sleep(0)
        with pytest.raises(EngineStopped):
            engine.stream(request())
        events = await reader
        assert [event.token_id for event in events] == generated(
            each.variant.model, each.prompt_ids, 20
        )
        await stopping
        assert not engine.is_alive

    scenario(run)


def test_what_is_not_done_in_time_is_aborted() -> None:
    async def run(engine: AsyncEngine) -> None:
        running, waiting = engine.stream(endless(1)), engine.stream(endless(2))
        await anext(running)
        await engine.stop(drain_s=0.01)
        assert [event async for event in running][-1].finish_reason is FinishReason.ABORT
        assert [event async for event in waiting][-1].finish_reason is FinishReason.ABORT

    scenario(run, max_num_seqs=1)


class _Crashing(Engine):
    """An engine with a defect that shows after some steps."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self._num_steps = num_steps

    def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
        if not self._num_steps:
            raise RuntimeError("a defect")
        self._num_steps -= 1
        return super().step(interruption)


def test_a_crash_fails_every_open_stream_and_all_that_come_later(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ends = []

    def on_end(_request: Request, last: TokenEvent) -> None:
        ends.append(last.finish_reason)

    async def run(engine: AsyncEngine) -> None:
        streams = [engine.stream(endless(seed), on_end) for seed in range(3)]
        for stream in streams:
            with pytest.raises(EngineStopped, match="crashed"):
                await events_of(stream)
        assert ends == [FinishReason.ERROR] * 3
        assert not engine.is_alive
        with pytest.raises(EngineStopped):
            engine.stream(request())

    scenario(run, engine=_Crashing(num_steps=4))
    assert "a defect" in caplog.text


def test_an_engine_that_was_not_started_takes_nothing() -> None:
    async def main() -> None:
        engine = AsyncEngine(Engine(), max_waiting=1)
        assert not engine.is_alive
        with pytest.raises(EngineStopped):
            engine.stream(request())
        await engine.stop()

    asyncio.run(main())


def test_an_engine_has_one_thread() -> None:
    async def run(engine: AsyncEngine) -> None:
        with pytest.raises(RuntimeError, match="already started"):
            engine.start()

    scenario(run)
