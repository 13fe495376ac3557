"""One replica without Ray: its responses, its load and its health."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from app.cluster.messages import ForwardedRequest
from app.cluster.replica import Exchange, Replica
from app.engine.async_engine import EngineStopped
from pruning.models.store import NotAModel


def asked(path: str, body: dict[str, Any] | None = None) -> ForwardedRequest:
    content = b"" if body is None else json.dumps(body).encode()
    headers = [(b"content-type", b"application/json")]
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
    }
    scope |= {"method": "GET" if body is None else "POST", "path": path, "query_string": b""}
    return ForwardedRequest({**scope, "headers": headers}, content)


@asynccontextmanager
async def replica_on(data_dir: Path, redis_url: str) -> AsyncIterator[Replica]:
    fields = {"data_dir": data_dir, "redis_url": redis_url, "max_num_seqs": 2, "drain_s": 0}
    replica = Replica.__new__(Replica)
    await replica.__init__(fields)  # type: ignore[misc]  # as Ray Serve does
    try:
        yield replica
    finally:
        ending = replica.__del__()
        assert ending is not None
        await ending
        assert replica.__del__() is None


def test_it_is_there_when_its_models_are_and_answers(tiny_models_dir: Path, redis_url: str) -> None:
    async def answers() -> tuple[Any, Any]:
        async with replica_on(tiny_models_dir.parent, redis_url) as replica:
            ready = await replica.respond(asked("/health/ready"))
            body = {"model": "tiny", "prompt": "the dog", "max_new_tokens": 3}
            return ready, await replica.respond(asked("/generate", body))

    ready, generated = asyncio.run(answers())
    assert ready.status == generated.status == 200
    assert ready.replica == generated.replica
    assert json.loads(generated.body)["outputs"][0]["completion_tokens"] > 0


def test_load_is_told_in_tokens_and_slots_and_leaves_with_the_client(
    tiny_models_dir: Path, redis_url: str
) -> None:
    async def loads() -> list[dict[str, float]]:
        async with replica_on(tiny_models_dir.parent, redis_url) as replica:
            body = {"model": "tiny", "prompt": ["a"] * 4, "max_new_tokens": 200, "ignore_eos": True}
            before = replica.record_autoscaling_stats()
            answer = replica.stream(asked("/generate", {**body, "stream": True}))
            await anext(answer)  # headers or first tokens: from then on all are admitted
            during = replica.record_autoscaling_stats()
            await answer.aclose()  # type: ignore[attr-defined]
            async with asyncio.timeout(60):
                while replica.record_autoscaling_stats() != before:
                    await asyncio.sleep(0)
            labels = {
                "model_name": "tiny",
                "variant": "dense",
                "traffic": "live",
                "engine": "own",
            }
            found = replica.services.metrics.registry.get_sample_value(
                "sleb_request_success_total", {**labels, "finished_reason": "abort"}
            )
            assert found == 4
            return [before, during]

    before, during = asyncio.run(loads())
    assert before == {"queued_tokens": 0, "busy": 0}
    assert during["queued_tokens"] >= 2 * 200


@pytest.mark.parametrize("is_complete", [True, False])
def test_an_error_is_the_replicas_only_before_its_answer_is_complete(is_complete: bool) -> None:
    """Starlette sends a 500 and then raises the error again for the server."""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": not is_complete})
        raise RuntimeError("a defect")

    async def said() -> list[str]:
        exchange = Exchange(app, {}, b"")
        return [each["type"] async for messages in exchange.messages() for each in messages]

    if is_complete:
        assert asyncio.run(said()) == ["http.response.start", "http.response.body"]
    else:
        with pytest.raises(RuntimeError, match="a defect"):
            asyncio.run(said())


def test_an_engine_that_is_dead_wants_a_fresh_process(
    tiny_models_dir: Path, redis_url: str
) -> None:
    async def look() -> None:
        async with replica_on(tiny_models_dir.parent, redis_url) as replica:
            replica.check_health()
            await replica.services.generation.engine.stop()
            with pytest.raises(EngineStopped, match="restart"):
                replica.check_health()

    asyncio.run(look())


def test_a_machine_that_sees_no_models_is_of_no_use(tmp_path: Path, redis_url: str) -> None:
    async def begin() -> None:
        async with replica_on(tmp_path, redis_url):
            pass

    with pytest.raises(NotAModel, match="storage shared by all machines of the cluster"):
        asyncio.run(begin())
