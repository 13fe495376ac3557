"""Kernels are timed beside the work of the engine, in short increments."""

import asyncio
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import pytest

from app.engine.async_engine import AsyncEngine, StillWarmingUp
from app.engine.autotuning import OFF, Autotuner, Choice, Times, Trial, chosen
from app.engine.engine import Engine
from app.engine.engine_loop import EngineLoop
from app.engine.kernels.compiled.openmp import ParallelFunction
from app.engine.kernels.warm_up import WarmUp
from app.engine.variant import Variant, make_variant
from tests.support.compilable import count
from tests.support.compiled import load_compiled
from tests.support.engine_requests import expected, prompt, request, run, variant
from tests.support.engine_scenarios import scenario
from tests.support.tiny import tiny_model
from tests.support.waiting import wait_until

KERNELS = ("one", "two")


@dataclass
class Clock:
    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Trials:
    """Trials of these keys, which note when their kernels run and take a second of the clock."""

    clock: Clock
    keys: Sequence[str] = ("a", "b")
    runs: list[str] = field(default_factory=list)
    failure: Exception | None = None

    def __call__(self) -> Iterator[Trial]:
        for key in self.keys:
            yield Trial(key, partial(self._prepared, key))

    def _prepared(self, key: str) -> dict[str, Callable[[], object]]:
        return {kernel: partial(self._run, f"{key} {kernel}") for kernel in KERNELS}

    def _run(self, name: str) -> None:
        if self.failure is not None:
            raise self.failure
        self.clock.now_s += 1
        self.runs.append(name)


@pytest.fixture(autouse=True)
def disturbed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether times vary; a test sets it."""
    states = [False]

    def judged(times: Times, before: Choice | None = None) -> Choice:
        return replace(chosen(times, before), is_firm=not states[0])

    monkeypatch.setattr("app.engine.kernels.warm_up.chosen", judged)
    return states


def finished(warm_up: WarmUp, each: Variant) -> None:
    while warm_up.is_warming_up(each):
        assert warm_up.wait_s == 0.0
        assert warm_up.advance()


def test_all_keys_are_timed_once() -> None:
    tuner, clock = Autotuner(), Clock()
    warm_up, trials = WarmUp(tuner, clock), Trials(clock)
    assert (warm_up.wait_s, warm_up.advance()) == (None, False)
    warm_up.add(variant(), (), trials)
    finished(warm_up, variant())
    assert tuner.choices.keys() == {"a", "b"}
    assert {f"{key} {kernel}" for key in "ab" for kernel in KERNELS} == set(trials.runs)
    num_runs = len(trials.runs)
    warm_up.add(variant(True), (), trials)
    assert warm_up.is_warming_up(variant(True))
    finished(warm_up, variant(True))
    assert len(trials.runs) == num_runs, "a variant has the choices of its model"
    assert warm_up.wait_s is None


@pytest.mark.parametrize("tuner", [OFF, Autotuner(always=frozenset({"one"}))])
def test_nothing_is_timed_where_nothing_is_chosen_by_time(tuner: Autotuner) -> None:
    warm_up, trials = WarmUp(tuner), Trials(Clock())
    warm_up.add(variant(), (), trials)
    finished(warm_up, variant())
    assert not trials.runs


def test_what_is_chosen_without_times_is_compiled_before_it_is_ready() -> None:
    warm_up, function = WarmUp(Autotuner(always=frozenset({"one"}))), ParallelFunction(count)
    function.is_claimed = True
    warm_up.add(variant(), [function], Trials(Clock()))
    states = [warm_up.state]
    assert warm_up.is_warming_up(variant())
    function.load()
    finished(warm_up, variant())
    assert [*states, warm_up.state] == ["compiling", "ready"]


def test_what_was_disturbed_is_timed_again_once_nothing_else_runs(disturbed: list[bool]) -> None:
    tuner, clock = Autotuner(), Clock()
    warm_up, trials = WarmUp(tuner, clock), Trials(clock)
    disturbed[0] = True
    warm_up.add(variant(), (), trials)
    finished(warm_up, variant())
    assert not any(choice.is_firm for choice in tuner.choices.values())
    assert warm_up.wait_s == 30.0
    assert not warm_up.advance(), "it does not wait"
    clock.now_s += 30
    while warm_up.wait_s == 0.0:
        warm_up.advance()
    assert not tuner.choices["a"].is_firm, "the machine is still busy"
    disturbed[0] = False
    clock.now_s += 30
    while warm_up.wait_s == 0.0:
        warm_up.advance()
    assert all(choice.is_firm for choice in tuner.choices.values())
    assert warm_up.wait_s is None


def test_times_that_always_vary_are_taken_after_some_attempts(disturbed: list[bool]) -> None:
    clock = Clock()
    warm_up, trials = WarmUp(Autotuner(), clock), Trials(clock)
    disturbed[0] = True
    warm_up.add(variant(), (), trials)
    finished(warm_up, variant())
    num_attempts = 1
    while warm_up.wait_s is not None:
        clock.now_s += 30
        while warm_up.wait_s == 0.0:
            warm_up.advance()
        num_attempts += 1
    assert num_attempts == 5


def test_what_was_disturbed_is_not_timed_again_while_models_are_compared(
    disturbed: list[bool],
) -> None:
    clock = Clock()
    warm_up, trials = WarmUp(Autotuner(), clock), Trials(clock)
    disturbed[0] = True
    warm_up.add(variant(), (), trials)
    finished(warm_up, variant())
    clock.now_s += 30
    with warm_up.held():
        assert (warm_up.wait_s, warm_up.advance()) == (None, False)
        warm_up.add(variant(True), (), trials)
        finished(warm_up, variant(True))
        clock.now_s += 30
        assert not warm_up.advance()
    assert warm_up.wait_s == 0.0
    assert warm_up.advance()


def test_a_model_waits_for_what_is_compiled() -> None:
    tuner, clock, function = Autotuner(), Clock(), ParallelFunction(count)
    warm_up, trials = WarmUp(tuner, clock), Trials(clock)
    function.is_claimed = True
    warm_up.add(variant(), [function], trials)
    states = [warm_up.state]
    assert not warm_up.advance()
    assert warm_up.wait_s is not None
    assert 0 < warm_up.wait_s < 1
    function.has_failed = True
    states.append(warm_up.state)
    finished(warm_up, variant())
    assert tuner.choices.keys() == {"a", "b"}
    assert [*states, warm_up.state] == ["compiling", "timing", "failed"]
    function.load()  # at a later attempt
    trials.keys = ("a", "c")
    clock.now_s += 100
    while warm_up.wait_s == 0.0:
        warm_up.advance()
    assert tuner.choices.keys() == {"a", "b", "c"}
    assert warm_up.state == "ready"


def test_a_failure_leaves_the_first_kernels(caplog: pytest.LogCaptureFixture) -> None:
    tuner, clock = Autotuner(), Clock()
    warm_up = WarmUp(tuner, clock)
    warm_up.add(variant(), (), Trials(clock, failure=RuntimeError("out of memory")))
    finished(warm_up, variant())
    assert tuner.kernel("a", KERNELS) == "one"
    assert "kernels could not be measured" in caplog.text


def test_beside_live_steps_increments_are_few_and_short() -> None:
    clock = Clock()
    warm_up, trials = WarmUp(Autotuner(), clock), Trials(clock)
    warm_up.add(variant(), (), trials)
    warm_up.advance_beside(5.0)
    assert len(trials.runs) == 1
    for _ in range(4):
        warm_up.advance_beside(1.0)
    assert len(trials.runs) == 1, "an increment is longer than such a step"
    for _ in range(10):
        warm_up.advance_beside(5.0)
    assert len(trials.runs) == 6, "a tenth of the time"


def test_a_request_is_answered_while_kernels_are_timed() -> None:
    load_compiled()
    tuner = Autotuner()
    engine = Engine(tuner=tuner)
    loop, each = EngineLoop(engine), request(prompt(9), max_new_tokens=6)
    engine.kernels.prepare(variant())
    for _ in range(3):
        assert loop.step() == []
    outcome = run(engine, each)
    assert outcome.of(each) == expected(each)
    assert engine.kernels.warm_up.is_warming_up(variant()), "a step has waited"
    while engine.kernels.warm_up.is_warming_up(variant()):
        loop.step()
    assert {key.partition(",")[0] for key in tuner.choices} >= {"attention", "blocks", "head of 1"}


def test_who_compares_waits_until_all_is_timed() -> None:
    load_compiled()
    engine = Engine(tuner=Autotuner())

    async def wait(engine: AsyncEngine) -> None:
        with pytest.raises(StillWarmingUp, match=r"tiny.*retry later"):
            await engine.warmed_up([variant()], 0.0)
        assert engine.is_warming_up(variant())
        await engine.warmed_up([variant()], 60.0)
        assert not engine.is_warming_up(variant())
        async with asyncio.timeout(10):
            await engine.warmed_up([variant()], 0.0)

    scenario(wait, engine=engine)


def test_what_was_disturbed_is_timed_again_after_a_comparison_without_a_request(
    disturbed: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engine.kernels.warm_up._AGAIN_S", 0.0)
    load_compiled()
    disturbed[0] = True
    tuner = Autotuner()
    engine = Engine(tuner=tuner)
    warm_up = engine.kernels.warm_up

    def are_firm() -> bool:
        return all(choice.is_firm for choice in tuner.choices.values())

    async def compare(engine: AsyncEngine) -> None:
        with engine.keeping_kernels():
            await engine.warmed_up([variant()], 60.0)
            assert not are_firm()
            disturbed[0] = False
            await asyncio.to_thread(wait_until, lambda: warm_up.wait_s is None, "the engine rests")
        await asyncio.to_thread(wait_until, are_firm, "what was disturbed is timed again")

    scenario(compare, engine=engine)


def test_what_has_warmed_up_keeps_no_variant_in_memory() -> None:
    load_compiled()
    kernels = Engine(tuner=Autotuner()).kernels
    each = make_variant("tiny", "tiny", tiny_model("llama"))
    kernels.finish(each)
    gone = weakref.ref(each)
    del each
    assert gone() is None
