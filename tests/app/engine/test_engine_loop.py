"""An engine that hangs: told by its figures, survived by its owner."""

import asyncio
import logging
import threading

import pytest
import torch
from torch import nn

from app.engine import engine_loop
from app.engine.async_engine import AsyncEngine, EngineStopped
from app.engine.engine import Engine
from app.engine.scheduling.sequence import FinishReason, TokenEvent
from app.engine.step import NEVER, Interruption
from app.engine.variant import Variant, make_variant
from pruning.models.blocks import block_list
from tests.support.engine_requests import PRUNED_BLOCKS, prompt, request
from tests.support.engine_scenarios import endless, events_of, scenario, until
from tests.support.tiny import tiny_model

STALL_S = 0.2


class Blocking(nn.Module):
    """A part of a block whose forward waits for the gate, as for a device that does not answer."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.gate = threading.Event()
        self.is_waiting = threading.Event()

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        self.is_waiting.set()
        self.gate.wait()
        found: torch.Tensor = self.part(hidden)
        return found


def blocking_variant() -> tuple[Variant, Blocking]:
    each = make_variant("blocking", "tiny", tiny_model("llama"), PRUNED_BLOCKS)
    block = block_list(each.model)[1]
    block.mlp = blocking = Blocking(block.get_submodule("mlp"))
    return each, blocking


def test_a_step_that_does_not_end_is_a_fault_until_it_does() -> None:
    variant, blocking = blocking_variant()

    async def run(engine: AsyncEngine) -> None:
        assert (engine.stalled_s, engine.fault) == (0.0, None)
        each = request(prompt(5), variant, max_new_tokens=3)
        reader = asyncio.create_task(events_of(engine.stream(each)))
        await until(lambda: engine.fault is not None)
        assert engine.is_alive, "alive, and yet of no use"
        assert engine.stalled_s > STALL_S
        assert "no engine step has finished for" in (engine.fault or "")
        blocking.gate.set()
        assert len(await reader) == 3
        assert (engine.stalled_s, engine.fault) == (0.0, None)

    scenario(run, stall_s=STALL_S)


def test_an_engine_without_work_is_not_stalled_however_long_ago_its_last_step_was() -> None:
    async def run(engine: AsyncEngine) -> None:
        await events_of(engine.stream(request(max_new_tokens=1)))
        await asyncio.sleep(2 * STALL_S)
        assert (engine.stalled_s, engine.fault) == (0.0, None)
        async with engine.stream(endless()) as stream:
            assert engine.fault is None, "it has not had the time to begin"
            await anext(stream)

    scenario(run, stall_s=STALL_S)


def test_a_thread_that_is_stuck_is_left_behind_at_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_loop, "_JOIN_S", 0.1)
    variant, blocking = blocking_variant()

    async def run(engine: AsyncEngine) -> None:
        stream = engine.stream(request(prompt(5), variant))
        await until(blocking.is_waiting.is_set)
        await engine.stop()
        with pytest.raises(EngineStopped, match="during a step"):
            await events_of(stream)
        blocking.gate.set()
        await until(lambda: "engine" not in {thread.name for thread in threading.enumerate()})

    with caplog.at_level(logging.ERROR):
        scenario(run)
    assert "a step of the engine has not ended" in caplog.text


def test_an_ended_thread_is_a_fault() -> None:
    async def run(engine: AsyncEngine) -> None:
        await engine.stop()
        assert engine.fault == "the engine thread has stopped: restart the process"

    scenario(run)


class _Leaking(Engine):
    """Loses track of what it has finished."""

    def step(self, interruption: Interruption = NEVER) -> list[TokenEvent]:
        events = super().step(interruption)
        if not self.has_work and events:
            self._caches.of(endless().variant).pool.allocate(1)  # a leak
        return events


def test_an_idle_engine_takes_back_what_was_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def run(engine: AsyncEngine) -> None:
        for _ in range(2):
            events = await events_of(engine.stream(request(max_new_tokens=2)))
            assert events[-1].finish_reason is FinishReason.LENGTH
            await until(lambda: "the cache of keys and values was rebuilt" in caplog.text)
            caplog.clear()
            assert engine.fault is None

    scenario(run, engine=_Leaking())


class _Taking(Engine):
    """Keeps what there was to take while it was idle."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def take_ahead(self) -> bool:
        assert not self.has_work
        self.found.append(super().take_ahead())
        return self.found[-1]


def test_an_idle_engine_takes_memory_for_the_next_pages() -> None:
    taking = _Taking()

    async def run(engine: AsyncEngine) -> None:
        await events_of(engine.stream(request(max_new_tokens=2)))
        await until(lambda: True in taking.found and not taking.found[-1])

    scenario(run, engine=taking)
