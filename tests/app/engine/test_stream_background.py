"""Background requests and other work in the engine's thread: they give way, and end well."""

import asyncio
import threading
from collections.abc import Generator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from app.engine.async_engine import AsyncEngine, EngineStopped
from app.engine.engine import Engine, PromptTooLong
from app.engine.engine_loop import EngineLoop, Work
from app.engine.sampling.stream import Stream
from app.engine.scheduling.admission import Overloaded
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import FinishReason, Request, TokenEvent
from app.engine.step import Interruption
from app.engine.variant import make_variant
from pruning.models.blocks import block_list
from tests.support.engine_requests import Outcome, expected, prompt, request, variant
from tests.support.engine_scenarios import endless, events_of, scenario, until
from tests.support.integrity import check_engine
from tests.support.tiny import tiny_model


class Scripted(Interruption):
    """Interrupts where the script says so."""

    def __init__(self, script: list[bool]) -> None:
        super().__init__()
        self.num_asked = 0
        self._script = script

    @property
    def is_set(self) -> bool:
        self.num_asked += 1
        return self.num_asked <= len(self._script) and self._script[self.num_asked - 1]


def background(each: Request) -> Request:
    return replace(each, is_background=True)


def engine_loop() -> tuple[Engine, EngineLoop]:
    engine = Engine(EngineLimits(max_num_seqs=4))
    return engine, EngineLoop(engine)


def was_alone(events: list[TokenEvent]) -> bool:
    assert events[-1].timings is not None
    return events[-1].timings.was_alone


def test_a_background_request_is_answered_as_any_other() -> None:
    each = request(prompt(90), max_new_tokens=9)  # more than a background chunk

    async def run(engine: AsyncEngine) -> None:
        stream = engine.background(background(each))
        events = await events_of(stream)
        assert [event.token_id for event in events] == expected(each)
        assert was_alone(events)

    scenario(run)


def test_it_takes_no_step_while_a_request_runs() -> None:
    each, other = background(request(prompt(5))), request(prompt(6), max_new_tokens=4)
    (engine, loop), outcome = engine_loop(), Outcome()
    engine.add(each)
    outcome.take(loop.step())
    assert len(outcome.of(each)) == 1
    engine.add(other)
    while other.request_id not in outcome.last:
        outcome.take(loop.step())
        check_engine(engine)
        assert len(outcome.of(each)) == 1
    while loop.has_work:
        outcome.take(loop.step())
        check_engine(engine)
    assert outcome.of(each) == expected(each)
    assert outcome.of(other) == expected(other)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "gpt2"])  # the flat forward, and a model's own
@given(wanted=st.lists(st.booleans(), max_size=60))
@settings(max_examples=20)
def test_a_step_that_is_given_up_is_repeated(family: str, wanted: list[bool]) -> None:
    engine = Engine(EngineLimits(max_num_seqs=4))
    loop = EngineLoop(engine, Scripted(wanted))
    each = background(request(prompt(90), variant(family=family), max_new_tokens=4))
    outcome = Outcome()
    engine.add(each)
    while loop.has_work:
        outcome.take(loop.step())
        check_engine(engine)
    assert outcome.of(each) == expected(each)


def test_what_is_wanted_ends_a_background_step_with_the_block_that_has_begun() -> None:
    engine, each, outcome = Engine(), request(prompt(6)), Outcome()
    loop = EngineLoop(engine, script := Scripted([False, False, True]))
    engine.add(background(request(prompt(5))))
    assert loop.step() == []
    assert script.num_asked == 3
    engine.add(each)
    while each.request_id not in outcome.last:
        outcome.take(loop.step())
    assert script.num_asked == 3, "a request is not preempted"
    assert outcome.of(each) == expected(each)


@pytest.mark.parametrize(
    ("is_replay", "first", "last"), [(False, [5, 7, 5], [7, 5]), (True, [5, 7], [5, 7])]
)
def test_a_request_that_comes_ends_the_background_step_that_has_begun(
    is_replay: bool, first: list[int], last: list[int]
) -> None:
    """The step waits in its first block until there is the request; its last is not reached then.
    Another background request waits for its turn, or the times of the first would be too long.
    """
    each = make_variant("tiny", "tiny", tiny_model("llama", seed=77), None)
    blocks = block_list(each.model)
    has_come, begun_with, ended_with = threading.Event(), list[int](), list[int]()

    async def run(engine: AsyncEngine) -> None:
        loop, begun = asyncio.get_running_loop(), asyncio.Event()

        def begin(_module: nn.Module, args: tuple[torch.Tensor], _output: object) -> None:
            begun_with.append(len(args[0]))
            if not has_come.is_set():
                loop.call_soon_threadsafe(begun.set)
                assert has_come.wait(100)

        def end(_module: nn.Module, args: tuple[torch.Tensor], _output: object) -> None:
            ended_with.append(len(args[0]))

        hooks = [blocks[0].get_submodule("mlp.down_proj").register_forward_hook(begin)]
        hooks.append(blocks[-1].get_submodule("mlp.down_proj").register_forward_hook(end))
        try:
            replay = engine.background(background(request(prompt(5), each, max_new_tokens=1)))
            await begun.wait()
            other = request(prompt(7), each, max_new_tokens=1)
            stream = engine.background(background(other)) if is_replay else engine.stream(other)
            has_come.set()
            await events_of(stream)
            assert [event.finish_reason async for event in replay] == [FinishReason.LENGTH]
        finally:
            for hook in hooks:
                hook.remove()

    scenario(run)
    assert (begun_with, ended_with) == (first, last)


def test_one_of_them_runs_at_a_time() -> None:
    first, second = (background(request(prompt(5, seed), max_new_tokens=6)) for seed in (1, 2))
    (engine, loop), outcome = engine_loop(), Outcome()
    engine.add(first)
    engine.add(second)
    while first.request_id not in outcome.last:
        assert not outcome.of(second)
        outcome.take(loop.step())
    while loop.has_work:
        outcome.take(loop.step())
    assert outcome.of(second) == expected(second)


def test_one_that_was_interrupted_says_so() -> None:
    async def run(engine: AsyncEngine) -> None:
        each = endless(1)
        stream = engine.background(background(each))
        await anext(stream)
        await events_of(engine.stream(request(prompt(5))))
        events = [event async for event in stream]
        assert events[-1].finish_reason is FinishReason.LENGTH
        assert not was_alone(events)
        assert was_alone(await events_of(engine.background(background(request(prompt(5))))))

    scenario(run)


def test_requests_know_whether_they_were_alone() -> None:
    async def run(engine: AsyncEngine) -> None:
        first = engine.stream(endless(1))
        second = engine.stream(request(prompt(4)))
        assert not was_alone(await events_of(second))
        first.cancel()
        assert not was_alone([event async for event in first])
        assert was_alone(await events_of(engine.stream(request(prompt(4)))))

    scenario(run)


def test_all_of_them_go_when_a_request_has_to_wait() -> None:
    async def run(engine: AsyncEngine) -> None:
        streams = [engine.background(background(endless(seed))) for seed in range(3)]
        live = [engine.stream(endless(seed)) for seed in range(3)]
        for stream in streams:
            last = [event async for event in stream][-1]
            assert last.finish_reason is FinishReason.ABORT
        with pytest.raises(Overloaded):
            engine.background(background(endless()))
        for each in live:
            await each.aclose()

    scenario(run, max_num_seqs=2)


def test_one_that_is_cancelled_ends_alone() -> None:
    async def run(engine: AsyncEngine) -> None:
        dense, pruned = (background(request(prompt(5), variant(each))) for each in (False, True))
        streams = [engine.background(each) for each in (dense, pruned)]
        streams[1].cancel()
        ends = [[event async for event in stream][-1] for stream in streams]
        assert [each.finish_reason for each in ends] == [FinishReason.LENGTH, FinishReason.ABORT]

    scenario(run)


def test_none_of_them_outlives_the_stop() -> None:
    streams: list[Stream] = []

    async def run(engine: AsyncEngine) -> None:
        with pytest.raises(PromptTooLong):
            engine.background(background(request([3] * 500)))
        streams.extend(engine.background(background(endless(each))) for each in range(3))
        await engine.stop(drain_s=60)  # which does not wait for them: the test would time out
        ends = [[event async for event in stream][-1] for stream in streams]
        assert {each.finish_reason for each in ends} == {FinishReason.ABORT}
        with pytest.raises(EngineStopped):
            engine.background(background(endless()))

    scenario(run)


def counting(number: int, log: list[str]) -> Generator[None, None, int]:
    try:
        for _ in range(number):
            log.append("piece")
            yield
    finally:
        log.append("closed")
    return number


def test_work_takes_one_piece_after_each_step() -> None:
    (engine, loop), log = engine_loop(), list[str]()
    each = request(prompt(5), max_new_tokens=4)
    work = Work(counting(3, log))
    engine.add(each)
    loop.add_work(work)
    outcome = Outcome()
    for step in range(1, 4):
        outcome.take(loop.step())
        assert (len(outcome.of(each)), log.count("piece")) == (step, step)
    outcome.take(loop.step())
    assert work.future.result(0) == 3
    assert outcome.of(each) == expected(each)
    assert not loop.has_work


def test_work_without_a_waiting_client_ends() -> None:
    log = list[str]()

    async def run(engine: AsyncEngine) -> None:
        waiting = asyncio.create_task(engine.run(counting(10**9, log), variant()))
        await until(lambda: "piece" in log)
        assert engine.num_open([variant()]) == 1
        waiting.cancel()
        await until(lambda: "closed" in log)
        assert engine.num_open([variant()]) == 0
        assert await engine.run(counting(2, []), variant()) == 2

    scenario(run)


def failing() -> Generator[None, None, int]:
    yield
    raise ValueError("a defect of it")


def test_work_that_fails_fails_alone() -> None:
    async def run(engine: AsyncEngine) -> None:
        stream = engine.stream(request(prompt(5)))
        with pytest.raises(ValueError, match="a defect of it"):
            await engine.run(failing(), variant())
        events: list[TokenEvent] = await events_of(stream)
        assert events[-1].finish_reason is FinishReason.LENGTH

    scenario(run)


def test_the_end_of_the_engine_ends_work() -> None:
    async def run(engine: AsyncEngine) -> None:
        log = list[str]()
        waiting = asyncio.create_task(engine.run(counting(10**9, log), variant()))
        await until(lambda: "piece" in log)
        await engine.stop()
        with pytest.raises(EngineStopped):
            await waiting
        with pytest.raises(EngineStopped):
            await engine.run(counting(1, log), variant())

    scenario(run)
