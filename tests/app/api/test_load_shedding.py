"""While the queue is full, generation requests are refused before they cost any work."""

import socket
from typing import Any

import httpx2
import pytest
import redis
from fastapi.testclient import TestClient

from app.config import ServeSettings
from app.generation.tokenization import TokenizerPool
from tests.support.engines import gated
from tests.support.exposition import Scrape
from tests.support.raw_requests import send
from tests.support.serving import local_api, serving
from tests.support.waiting import wait_until

PATHS = ["/generate", "/compare", "/v1/completions", "/v1/chat/completions"]
OTHER = {"model_name": "other", "variant": "unknown", "traffic": "live", "engine": "unknown"}
FULL: dict[str, Any] = {"prompt": ["the dog"] * 12, "max_new_tokens": 100, "stream": True}


def test_a_full_queue_refuses_before_the_body_is_parsed(
    settings: ServeSettings, redis_url: str, redis_client: redis.Redis
) -> None:
    redis_client.ping()
    with (
        gated() as engine,
        local_api(settings, redis_url, engine) as client,
        client.sse("/generate", method="POST", json={"model": "tiny", **FULL}),
    ):
        for path in PATHS:
            refused = client.post(path, content=b"{ this is not JSON")
            assert refused.status_code == 429, path
            assert int(refused.headers["retry-after"]) >= 1
            assert "12 requests running or waiting" in refused.text
            assert "limit of 12" in refused.text
        found = Scrape(client.get("/metrics").text)
        rejections = "sleb_admission_rejections_total"
        assert found.value(rejections, reason="queue_full", **OTHER) == len(PATHS)
        route = {"route": "/compare", "method": "POST", "status": "429"}
        assert found.value("sleb_http_requests_total", **route) == 1
        assert client.get("/v1/models").status_code == 200
        engine.gate.set()


def test_no_more_requests_are_prepared_than_can_be_admitted(
    settings: ServeSettings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent at once, more than fit are refused, though none is in the engine yet."""
    num_tokenized, encode = 0, TokenizerPool.encode

    async def counted(pool: TokenizerPool, prompts: Any, tokenizer: Any, limit: Any) -> Any:
        nonlocal num_tokenized
        num_tokenized += len(prompts)
        return await encode(pool, prompts, tokenizer, limit)

    monkeypatch.setattr(TokenizerPool, "encode", counted)
    with gated() as engine, serving(settings, redis_url, engine=engine) as (_, url):
        wait_until(lambda: httpx2.get(f"{url}/health/ready").is_success, "the API is ready")
        connections = [send(url, "/generate", {"prompt": "a"}) for _ in range(60)]

        def num_refused() -> float | None:
            found = Scrape(httpx2.get(f"{url}/metrics").text)
            return found.value("sleb_admission_rejections_total", reason="queue_full", **OTHER)

        wait_until(lambda: num_refused() == 60 - 12, "all but twelve are refused")
        assert num_tokenized == 12
        for connection in connections:
            connection.close()
        engine.gate.set()


def send_head(url: str) -> socket.socket:
    """A request on a bare connection, without the body that it promises."""
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    head = f"POST /generate HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def test_a_client_that_sends_no_body_holds_no_place(
    settings: ServeSettings, redis_url: str
) -> None:
    with serving(settings, redis_url) as (_, url):
        wait_until(lambda: httpx2.get(f"{url}/health/ready").is_success, "the API is ready")
        silent = [send_head(url) for _ in range(20)]
        body = {"model": "tiny", "prompt": "a", "max_new_tokens": 1}
        assert httpx2.post(f"{url}/generate", json=body).status_code == 200
        for connection in silent:
            connection.close()


def test_a_body_that_is_refused_leaves_its_place(client: TestClient) -> None:
    for _ in range(20):
        assert client.post("/generate", content=b"{").status_code == 422
        assert client.post("/generate", json={"model": "none", "prompt": "a"}).status_code == 404
    body = {"model": "tiny", "prompt": ["a"] * 12, "max_new_tokens": 1}
    assert client.post("/generate", json=body).status_code == 200
