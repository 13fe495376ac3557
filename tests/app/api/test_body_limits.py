"""Bodies that take long to parse are refused before, and imports are no garbage to look through."""

import asyncio
import gc
import json
from collections import Counter
from functools import partial
from itertools import count, pairwise
from typing import Any
from unittest.mock import AsyncMock

import pytest
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from app.api.problems import MAX_ITEMS, MAX_NESTED, BodyTooLarge
from app.server import serve
from tests.support import virtual_time

JSON = {"content-type": "application/json"}
PATHS = ["/generate", "/v1/completions", "/compare", "/prune-jobs", "/heal-jobs"]


HOSTILE = {
    "lists": b"[" + b",".join([b"[]"] * MAX_NESTED) + b"]",
    "deep lists": b"[" * (MAX_NESTED + 1),
    "objects": b"[" + b",".join([b'{"a":{}}'] * (MAX_NESTED // 2)) + b"]",
    "fields": b"{" + b",".join(b'"%d":1' % number for number in range(MAX_NESTED)) + b"}",
    "names that end with a backslash": b"{" + b",".join([rb'"\\":1'] * (MAX_NESTED + 1)) + b"}",
    "numbers": b"[" + b"1," * (MAX_ITEMS + 1) + b"1]",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_body_of_too_many_values_is_refused_unparsed(
    client: TestClient, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    loads = json.loads

    def noted(body: bytes, **given: Any) -> Any:
        parsed.append(body)
        return loads(body, **given)

    monkeypatch.setattr(json, "loads", noted)
    for path in PATHS:
        refused = client.post(path, content=HOSTILE[kind], headers=JSON)
        assert refused.status_code == 413, path
        told = loads(refused.content)
        problem = told["error"] if path.startswith("/v1/") else told
        assert (problem.get("code") or problem["type"]).replace("_", "-") == "too-many-values"
        assert f"{MAX_NESTED} brackets" in (problem.get("message") or problem["detail"])
    assert not [body for body in parsed if len(body) > MAX_NESTED]


def test_as_many_as_are_allowed_are_parsed(client: TestClient) -> None:
    """Text is counted as well, and a list of numbers has room for any context."""
    text = json.dumps({"model": "none", "prompt": "{[::" * ((MAX_NESTED - 9) // 2)}).encode()
    ids = json.dumps({"model": "none", "prompt": [1] * (MAX_ITEMS - 1)}).encode()
    assert client.post("/generate", content=text, headers=JSON).status_code == 404
    assert client.post("/v1/completions", content=ids, headers=JSON).status_code == 404


def test_others_get_turns_between_two_large_bodies() -> None:
    """However many arrive at once: a short request needs several steps of the loop."""
    order: list[str] = []

    async def parse(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        order.append("parsed")

    async def whole(body: bytes) -> Message:
        return {"type": "http.request", "body": body}

    async def answer() -> None:
        while order.count("parsed") < 5:
            order.append("answered")
            await asyncio.sleep(0)

    async def serve_all(body: bytes) -> None:
        limit, nothing = BodyTooLarge(parse), AsyncMock()
        requests = (limit({}, partial(whole, body), nothing) for _ in range(5))
        await asyncio.gather(*requests, answer())

    asyncio.run(serve_all(b"a" * 2**17))
    parsed = [step for step, what in enumerate(order) if what == "parsed"]
    assert all(later - earlier > 8 for earlier, later in pairwise(parsed))
    order.clear()
    asyncio.run(serve_all(b"a"))
    assert order[:5] == ["parsed"] * 5  # small ones do not wait


@pytest.mark.parametrize("body", [b"a" * 2**17, b"[]" * 6_000])
def test_the_engine_has_most_of_the_time_between_two_large_bodies(body: bytes) -> None:
    times_s: list[tuple[float, float]] = []

    async def parse(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        began_s = asyncio.get_running_loop().time()
        virtual_time.spend(0.25)
        times_s.append((began_s, asyncio.get_running_loop().time()))

    async def whole() -> Message:
        return {"type": "http.request", "body": body}

    async def serve_all() -> None:
        limit, nothing = BodyTooLarge(parse), AsyncMock()
        await asyncio.gather(*(limit({}, whole, nothing) for _ in range(4)))

    virtual_time.run(serve_all())
    pauses_s = [later[0] - earlier[1] for earlier, later in pairwise(times_s)]
    assert times_s[0][0] == 0
    assert pauses_s == pytest.approx([0.5] * 3)


def test_a_step_of_the_loop_handles_one_part_of_all_large_bodies() -> None:
    """Else a question about health, which needs several steps, waits for each of all clients."""
    steps = count()
    step, is_over = 0, False
    part = b"a" * 2**17
    parts_of_step: Counter[int] = Counter()

    async def receive_all(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()  # no body is large before its first part
        for _ in range(4):
            await receive()
            parts_of_step[step] += 1

    async def next_of() -> Message:
        return {"type": "http.request", "body": part, "more_body": True}

    async def tick() -> None:
        nonlocal step
        while not is_over:
            step = next(steps)
            await asyncio.sleep(0)

    async def serve_all() -> None:
        nonlocal is_over
        limit, nothing = BodyTooLarge(receive_all), AsyncMock()
        ticking = asyncio.create_task(tick())
        await asyncio.gather(*(limit({}, next_of, nothing) for _ in range(16)))
        is_over = True
        await ticking

    asyncio.run(serve_all())
    assert parts_of_step.total() == 64
    assert max(parts_of_step.values()) == 1


def test_no_garbage_is_collected_between_the_values_of_a_body() -> None:
    found: list[bool] = []

    async def parse(_scope: Scope, receive: Receive, _send: Send) -> None:
        await receive()
        found.append(gc.isenabled())
        await asyncio.sleep(0)
        found.append(gc.isenabled())

    async def serve_one(size: int) -> None:
        async def whole() -> Message:
            return {"type": "http.request", "body": b"a" * size}

        await BodyTooLarge(parse)({}, whole, AsyncMock())

    asyncio.run(serve_one(2**17))
    asyncio.run(serve_one(2**10))
    assert found == [False, True, True, True]


def test_what_lives_as_long_as_the_process_is_left_out_of_collections() -> None:
    before = gc.get_freeze_count()
    kept = [[] for _ in range(1000)]  # type: ignore[var-annotated]
    try:
        serve._leave_out_of_collections()
        assert gc.get_freeze_count() >= before + len(kept)
    finally:
        gc.unfreeze()
        gc.freeze()  # as the tests have it
