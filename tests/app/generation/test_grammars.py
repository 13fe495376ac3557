"""Grammars are made once, off the event loop, within a deadline, and a bounded number is kept."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from typing import Any

import pytest

from app.engine.admission import Overloaded
from app.engine.grammar import Grammar, ResponseFormatRefused
from app.engine.sequence import ResponseFormat
from app.engine.variant import Variant, make_variant
from app.generation import grammars
from app.generation.grammars import Grammars
from pruning.models.store import LoadedModel


@pytest.fixture(scope="module")
def tiny(tiny_loaded: LoadedModel) -> Variant:
    return make_variant("tiny", "tiny", tiny_loaded.model)


def const(value: object) -> ResponseFormat:
    return ResponseFormat("json_schema", f'{{"const": {value}}}')


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        asyncio.run(test(*args, **fixtures))

    return run


class _Gate:
    """Holds up the making of grammars until it is open, and counts it."""

    def __init__(self) -> None:
        self.is_open, self.has_begun = threading.Event(), threading.Event()
        self.schemas: list[str] = []

    def make(self, schema: str, tokens: Any) -> Grammar:
        self.schemas.append(schema)
        self.has_begun.set()
        self.is_open.wait()
        return Grammar(schema, tokens)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Gate]:
    gate = _Gate()
    monkeypatch.setattr(grammars, "Grammar", gate.make)
    yield gate
    gate.is_open.set()


@in_loop
async def test_a_schema_is_compiled_once(
    tiny: Variant, tiny_loaded: LoadedModel, gate: _Gate
) -> None:
    gate.is_open.set()
    made = Grammars()
    both = [made.get(const(1), tiny_loaded.tokenizer, tiny) for _ in range(2)]
    first, second = await asyncio.gather(*both)
    assert first is second
    wrong = ResponseFormat("json_schema", '{"not": {}}')
    for _ in range(2):
        with pytest.raises(ResponseFormatRefused, match="not"):
            await made.get(wrong, tiny_loaded.tokenizer, tiny)
    assert len(gate.schemas) == 2


@in_loop
async def test_the_oldest_grammars_are_dropped(
    tiny: Variant, tiny_loaded: LoadedModel, gate: _Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_GRAMMARS", 2)
    gate.is_open.set()
    made = Grammars()
    for value in (1, 2, 1, 3, 1, 2):
        await made.get(const(value), tiny_loaded.tokenizer, tiny)
    assert gate.schemas == [const(value).schema for value in (1, 2, 3, 2)]


@in_loop
async def test_the_deadline_refuses_what_takes_long_and_others_may_retry(
    tiny: Variant, tiny_loaded: LoadedModel, gate: _Gate
) -> None:
    made = Grammars(deadline_s=0.2)
    long = [asyncio.ensure_future(made.get(const(n), tiny_loaded.tokenizer, tiny)) for n in (1, 2)]
    while len(gate.schemas) < 2:
        await asyncio.sleep(0)
    with pytest.raises(Overloaded) as overloaded:  # its turn has not come
        await made.get(const(3), tiny_loaded.tokenizer, tiny)
    assert overloaded.value.retry_after_s >= 1
    for each in long:
        with pytest.raises(ResponseFormatRefused, match=r"longer than 0\.2 s"):
            await each
    gate.is_open.set()
    assert await Grammars().get(const(3), tiny_loaded.tokenizer, tiny)


@in_loop
async def test_few_requests_wait(
    tiny: Variant, tiny_loaded: LoadedModel, gate: _Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_WAITING", 1)
    made = Grammars()
    waiting = asyncio.ensure_future(made.get(const(1), tiny_loaded.tokenizer, tiny))
    assert await asyncio.to_thread(gate.has_begun.wait, 30)
    with pytest.raises(Overloaded):
        await made.get(const(1), tiny_loaded.tokenizer, tiny)
    gate.is_open.set()
    assert await waiting
