"""An account of pages that is wrong ends one request, and the cache is rebuilt for all others."""

import pytest

from app.engine.async_engine import AsyncEngine
from app.engine.cache.pages import PagePool
from app.engine.engine import Engine
from app.engine.scheduling.scheduler import EngineLimits
from app.engine.scheduling.sequence import FinishReason, Request
from tests.support.engine_requests import (
    Outcome,
    cache_bytes,
    prompt,
    request,
    run,
    variant,
)
from tests.support.engine_scenarios import events_of, scenario
from tests.support.integrity import check_engine

ENDS = FinishReason.LENGTH


def new_engine(num_tokens: int = 1024) -> Engine:
    return Engine(EngineLimits(kv_cache_bytes=cache_bytes(num_tokens), max_num_seqs=8))


def quiet(each: Request) -> list[int]:
    """What a request gives in an engine of its own."""
    return run(new_engine(), each).of(each)


def pool_of(engine: Engine) -> PagePool:
    return engine._caches.of(variant()).pool


def step_all(engine: Engine, outcome: Outcome) -> Outcome:
    while engine.has_work:
        outcome.take(engine.step())
    engine.mend_idle()
    check_engine(engine)
    return outcome


def check_in_order(engine: Engine, num_rebuilds: int = 1) -> None:
    """It goes on as if nothing had happened."""
    again = [request(prompt(20, seed=seed), ignore_eos=True) for seed in range(3)]
    outcome = run(engine, *again)
    assert [outcome.of(each) for each in again] == [quiet(each) for each in again]
    assert not engine.mend_idle()
    assert engine.stats().num_rebuilds == num_rebuilds


def begun(engine: Engine, *requests: Request) -> Outcome:
    outcome = Outcome()
    for each in requests:
        engine.add(each)
    while not all(outcome.of(each) for each in requests):
        outcome.take(engine.step())
    return outcome


@pytest.mark.parametrize("max_new_tokens", [12, 40], ids=["at its end", "before it needs a page"])
def test_a_page_that_another_has_left_ends_its_request_alone(max_new_tokens: int) -> None:
    engine = new_engine()
    bad = request(prompt(20, seed=8), max_new_tokens=max_new_tokens, ignore_eos=True)
    good = request(prompt(20, seed=9), max_new_tokens=30, ignore_eos=True)
    outcome = begun(engine, bad, good)
    page = engine._sequences[bad.request_id].pages.pages[0]
    pool_of(engine).release(page)
    step_all(engine, outcome)
    assert (outcome.reason(bad), outcome.reason(good)) == (FinishReason.ERROR, ENDS)
    assert outcome.of(good) == quiet(good)
    check_in_order(engine)


def test_units_that_are_counted_as_free_and_are_not_end_the_request_that_needs_them() -> None:
    engine = new_engine(num_tokens=64)
    first = request(prompt(15, seed=8), max_new_tokens=40, ignore_eos=True)
    outcome = begun(engine, first)
    pool_of(engine)._num_kept_units += 1000
    second = request(prompt(20, seed=9), max_new_tokens=30, ignore_eos=True)
    engine.add(second)
    step_all(engine, outcome)
    reasons = sorted([outcome.reason(first) or "", outcome.reason(second) or ""])
    assert reasons == sorted([FinishReason.ERROR, ENDS])
    good = first if outcome.reason(first) is ENDS else second
    assert outcome.of(good) == quiet(good)
    check_in_order(engine)


def test_a_page_that_no_request_has_is_found_between_two_requests() -> None:
    engine = new_engine()

    async def lose(serving: AsyncEngine) -> None:
        for _ in range(2):
            each = request(prompt(20), ignore_eos=True)
            events = await events_of(serving.stream(each))
            assert [event.token_id for event in events] == quiet(each)
            pool_of(engine).allocate(6)
        assert serving.fault is None

    scenario(lose, engine=engine)
    engine.mend_idle()
    check_in_order(engine, num_rebuilds=2)
