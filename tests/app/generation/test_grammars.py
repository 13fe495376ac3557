"""Schemas are checked in other processes within limits, a share for each key, and remembered."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import psutil
import pytest
from llguidance import LLTokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from app.auth.clients import client_address
from app.auth.keys import ApiKey, caller
from app.engine.grammar import Grammar, ResponseFormatRefused, grammar_tokens
from app.engine.scheduling.admission import Overloaded
from app.engine.scheduling.sequence import ResponseFormat
from app.engine.variant import Variant, make_variant
from app.generation import grammars, schema_server
from app.generation.grammars import Grammars, Turns
from app.generation.limited_process import ProcessEnded
from pruning.models.store import LoadedModel

SLOW = {"type": "integer", "multipleOf": 999_983}  # minutes to compile
LARGE = {"type": "string", "pattern": "[" * 60_000}  # minutes to look for repetitions
VALUES = {"const": 12}
SOON_S = 0.2  # of the processor, where a test waits for the end of what takes long


@pytest.fixture(scope="module")
def tiny(tiny_loaded: LoadedModel) -> Variant:
    return make_variant("tiny", "tiny", tiny_loaded.model)


def schema(value: object) -> ResponseFormat:
    return ResponseFormat("json_schema", json.dumps(value))


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        asyncio.run(test(*args, **fixtures))

    return run


class Service:
    """Grammars for the tiny model, and the keys that ask for them."""

    def __init__(self, made: Grammars, loaded: LoadedModel, variant: Variant) -> None:
        self.made = made
        self._arguments = loaded.tokenizer, variant

    async def get(
        self, value: object, key: str | None = None, address: str | None = None
    ) -> Grammar:
        client_address.set(address)
        caller.set(None if key is None else ApiKey(key, frozenset(), "", 0.0))
        return await self.made.get(schema(value), *self._arguments)

    def start(self, value: object, key: str | None = None) -> "asyncio.Task[Grammar]":
        return asyncio.create_task(self.get(value, key))

    @property
    def num_asked(self) -> int:
        """How often the process was asked to check a schema."""
        return next(self.made._client._ids)


@asynccontextmanager
async def service(
    loaded: LoadedModel, variant: Variant, deadline_s: float = 60.0
) -> AsyncIterator[Service]:
    made = Grammars(deadline_s)
    try:
        yield Service(made, loaded, variant)
    finally:
        await made.aclose()


@in_loop
async def test_each_request_has_a_grammar_of_a_schema_that_is_checked_once(
    tiny: Variant, tiny_loaded: LoadedModel
) -> None:
    async with service(tiny_loaded, tiny) as serving:
        first, second = await serving.get(VALUES), await serving.get(VALUES)
        assert first is not second
        for _ in range(2):
            with pytest.raises(ResponseFormatRefused, match="not"):
                await serving.get({"not": {}})
        assert serving.num_asked == 3  # one as the process did not know the tokenizer


@pytest.mark.parametrize("token", ["a" * 1023, "a" * 70_000, "é" * 512])
@in_loop
async def test_a_tokenizer_with_a_very_long_token_is_refused_at_once(
    tiny: Variant, tiny_loaded: LoadedModel, token: str
) -> None:
    """llguidance would read it for two minutes, in which nothing else runs, and panic."""
    file = (tiny_loaded.path / "tokenizer.json").read_text(encoding="utf-8")
    known = Tokenizer.from_str(file.replace('"<s>"', json.dumps(token)))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=known)
    async with service(replace(tiny_loaded, tokenizer=tokenizer), tiny) as serving:
        if token == "a" * 1023:
            assert await serving.get(VALUES)
            return
        with pytest.raises(ResponseFormatRefused, match=f"a token has {len(token.encode())} bytes"):
            await serving.get(VALUES)


@in_loop
async def test_no_schema_waits_for_a_table_of_tokens_within_its_time(
    tiny: Variant, tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither for the one here, which is built with the model, nor for that of the process."""
    built: list[int] = []

    def noted_tokens(*of: Any) -> LLTokenizer:
        built.append(1)
        return grammar_tokens(*of)

    monkeypatch.setattr(grammars, "grammar_tokens", noted_tokens)
    async with service(tiny_loaded, tiny) as serving:
        for _ in range(2):
            await serving.made.prepare(tiny_loaded.tokenizer, tiny)
        assert built == [1]
        turns = serving.made._usual
        assert serving.made._client._process is None  # started for the first schema
        prepare, was_in_turn = serving.made._client.prepare, []

        async def noted(*of: Any) -> None:
            was_in_turn.append(bool(turns._num_open))
            await prepare(*of)

        monkeypatch.setattr(serving.made._client, "prepare", noted)
        await asyncio.gather(*(serving.get({"const": number}) for number in range(3)))
        assert built == [1]
        assert was_in_turn == [False]
        assert serving.num_asked == 1 + 3


@pytest.mark.parametrize(
    "value", [SLOW, pytest.param(LARGE, marks=pytest.mark.slow)], ids=["slow", "large"]
)
@in_loop
async def test_a_schema_that_takes_long_is_refused_and_delays_no_usual_one(
    tiny: Variant, tiny_loaded: LoadedModel, value: object
) -> None:
    async with service(tiny_loaded, tiny) as serving:
        await serving.get(VALUES)  # the process runs
        slow = [serving.start({**value, "title": f"{n}"}, "bad") for n in range(3)]  # type: ignore[dict-item]
        for number in range(4):
            await asyncio.gather(
                serving.get({"const": number}, "good"), serving.get({"const": -number}, "bad")
            )
        assert not any(each.done() for each in slow)
        for each in slow:
            with pytest.raises(ResponseFormatRefused, match="compiling it takes more than 1 s"):
                await each
        num_asked = serving.num_asked
        with pytest.raises(ResponseFormatRefused, match="more than 1 s"):
            await serving.get({**value, "title": "0"})  # type: ignore[dict-item]
        assert serving.num_asked == num_asked + 1, "it is not remembered"
    assert not children()


def children() -> list[str]:
    """The processes that this one has started."""
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()


@in_loop
async def test_a_key_has_a_share_and_is_told_how_much_of_it_is_in_use(
    tiny: Variant, tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_CPU_S", SOON_S)
    monkeypatch.setattr(grammars, "MAX_WAITING", 3)
    async with service(tiny_loaded, tiny) as serving:
        await serving.get(VALUES)  # the process has the tokens
        slow = [serving.start({**SLOW, "title": f"{n}"}, "bad") for n in range(3)]
        while serving.made._usual._num_open["the key 'bad'"] < len(slow):
            await asyncio.sleep(0)
        with pytest.raises(
            Overloaded, match="3 schemas of the key 'bad' being compiled or wait"
        ) as told:
            await serving.get(VALUES, "bad")
        assert told.value.retry_after_s == pytest.approx(1.15)
        assert await serving.get(VALUES, "good")
        await asyncio.gather(*slow, return_exceptions=True)


@in_loop
async def test_clients_without_a_key_have_a_share_for_each_address(
    tiny: Variant, tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_CPU_S", SOON_S)
    monkeypatch.setattr(grammars, "MAX_WAITING", 3)
    async with service(tiny_loaded, tiny) as serving:
        await serving.get(VALUES)  # the process has the tokens
        bad = [f"2001:db8::{number}" for number in range(3)]  # of one network
        slow = [
            asyncio.create_task(serving.get({**SLOW, "title": address}, address=address))
            for address in bad
        ]
        whose = "clients without a key at 2001:db8::/64"
        while serving.made._usual._num_open[whose] < len(slow):
            await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=f"3 schemas of {whose} being compiled or waiting"):
            await serving.get(VALUES, address="2001:db8::9")
        for address in ("2001:db8:0:1::1", "192.0.2.7", None):
            assert await serving.get(VALUES, address=address)
        await asyncio.gather(*slow, return_exceptions=True)


@in_loop
async def test_a_client_that_leaves_keeps_its_turn_until_its_schema_is_checked(
    tiny: Variant, tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_CPU_S", SOON_S)
    async with service(tiny_loaded, tiny) as serving:
        await serving.get(VALUES)
        for number in range(4):
            leaving = serving.start({**SLOW, "title": f"{number}"}, "bad")
            await asyncio.sleep(0)
            leaving.cancel()
        assert len(serving.made._making) == 4
        await asyncio.gather(*serving.made._making, return_exceptions=True)
        assert len(serving.made._checked) == 5


@in_loop
async def test_waiting_for_a_turn_has_a_deadline() -> None:
    turns = Turns(0.05, 1.0)
    async with turns.turn("a"), turns.turn("a"):
        with pytest.raises(Overloaded):
            async with turns.turn("a"):
                pass
        async with turns.turn("b"):
            pass
    async with turns.turn("a"):
        pass


@in_loop
async def test_the_oldest_verdicts_are_dropped(
    tiny: Variant, tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_CHECKED", 2)
    async with service(tiny_loaded, tiny) as serving:
        for value in (1, 2, 1, 3, 1, 2):
            await serving.get({"const": value})
        assert serving.num_asked == 4 + 1


@in_loop
async def test_a_process_that_ends_is_started_again(
    tiny: Variant, tiny_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammars, "MAX_CPU_S", SOON_S)
    async with service(tiny_loaded, tiny) as serving:
        await serving.get(VALUES)
        waiting = serving.start(SLOW)
        while not serving.made._client._waiting:
            await asyncio.sleep(0)
        process = serving.made._client._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(ResponseFormatRefused, match=f"more than {SOON_S} s"):
            await waiting
        monkeypatch.setattr(schema_server, "__name__", "app.no_such_module")
        os.kill(serving.made._client._process.pid, signal.SIGKILL)  # type: ignore[union-attr]
        with pytest.raises(ProcessEnded):
            await serving.get({"const": 13})


@in_loop
async def test_schemas_give_way_to_the_engine(tiny: Variant, tiny_loaded: LoadedModel) -> None:
    """Also where Linux shares the processors by session: the process has its own."""
    async with service(tiny_loaded, tiny) as serving:
        await serving.get(VALUES)
        process = serving.made._client._process
        assert process is not None
        assert psutil.Process(process.pid).nice() > psutil.Process().nice()
        group = Path(f"/proc/{process.pid}/autogroup")
        assert not group.exists() or not group.read_text().endswith("nice 0\n")


def test_memory_is_limited() -> None:
    program = (
        "import os\n"
        "from app.generation.schema_server import MEMORY_BYTES, _limit, _ended\n"
        "if not (pid := os.fork()):\n"
        "    _limit(60.0)\n"
        "    try:\n"
        "        bytearray(MEMORY_BYTES * 2)\n"
        "    except MemoryError:\n"
        "        os._exit(1)\n"
        "    os._exit(0)\n"
        "status = os.waitpid(pid, 0)[1]\n"
        "print(_ended(status) if status else 'no limit')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert "compiling it takes more than 512 MB of memory" in ended.stdout


def test_the_process_imports_neither_torch_nor_transformers() -> None:
    program = (
        "import sys, app.generation.schema_server\n"
        "print({'torch', 'transformers', 'numpy', 'pydantic'} & sys.modules.keys())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert ended.stdout.strip() == "set()"
