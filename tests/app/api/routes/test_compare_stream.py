"""``POST /compare`` with ``stream``: how far it is, as server-sent events."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel

from app.api.generations import Followed, Observe, followed
from app.api.schemas.compare import CompareProgressView
from app.commands.client import Refused, ServiceClient, ServiceUnavailable
from app.config import ServeSettings
from app.engine.async_engine import EngineStopped
from tests.support.api_fixtures import publish_pruned
from tests.support.command_line import sleb
from tests.support.comparisons import compare
from tests.support.event_text import events_of
from tests.support.serving import serving
from tests.support.virtual_time import run


@pytest.fixture(autouse=True)
def _published(data_dir: Path) -> None:
    publish_pruned(data_dir)


def test_a_stream_counts_its_turns_and_ends_with_the_comparison(client: TestClient) -> None:
    body = {"models": ["tiny", "tiny@-1"], "prompt": "the dog", "repeats": 3, "max_new_tokens": 3}
    response = client.post("/compare", json={**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    *progress, (last, comparison) = events_of(response.text)
    assert {name for name, _ in progress} == {"progress"}
    done = [each["done"] for _, each in progress]
    assert done == sorted(set(done))
    assert (done[0], done[-1]) == (0, 9)
    assert {each["total"] for _, each in progress} == {9}, "two models and the control, three times"
    assert last == "done"
    assert comparison.keys() == compare(client).keys()
    assert (comparison["repeats"], comparison["object"]) == (3, "comparison")


def test_what_is_refused_has_its_status(client: TestClient) -> None:
    for models, status in ((["tiny", "none"], 404), (["tiny", "tiny@-99"], 404)):
        body = {"models": models, "prompt": "a", "stream": True}
        assert client.post("/compare", json=body).status_code == status


class Result(BaseModel):
    object: str = "result"


async def _sent(work: Callable[[Observe], Any]) -> list[bytes]:
    async with followed(Followed(work, "/compare")) as opened:
        return [content async for content in opened.events()]


def test_quiet_work_has_comments_and_a_failure_is_the_last_event() -> None:
    async def work(observe: Observe) -> Result:
        observe(CompareProgressView(done=0, total=2))
        await asyncio.sleep(40)
        observe(CompareProgressView(done=1, total=2))
        await asyncio.sleep(1)
        raise EngineStopped("it stops")

    sent = run(_sent(work))
    assert [content[:1] for content in sent] == [b"e", b":", b":", b"e", b"e"]
    name, problem = events_of(sent[-1].decode())[0]
    assert (name, problem["status"], problem["detail"]) == ("error", 503, "it stops")


def test_a_failure_before_the_first_event_is_raised() -> None:
    async def work(_observe: Observe) -> Result:
        raise EngineStopped("it stops")

    with pytest.raises(EngineStopped):
        run(_sent(work))


def test_work_ends_when_its_client_leaves() -> None:
    left = []

    async def work(observe: Observe) -> Result:
        observe(CompareProgressView(done=0, total=2))
        try:
            await asyncio.sleep(1000)
        finally:
            left.append("cancelled")
        return Result()

    async def leave() -> None:
        async with followed(Followed(work, "/compare")) as opened:
            await anext(opened.events())

    run(leave())
    assert left == ["cancelled"]


def test_the_command_shows_how_far_it_is(settings: ServeSettings, redis_url: str) -> None:
    options = ["--repeats", "2", "--max-new-tokens", "2"]
    with serving(settings, redis_url) as (_, url):
        ran = sleb(settings.data_dir, "compare", "tiny", "tiny@-1", *options, "--url", url)
    assert ran.returncode == 0, ran.stderr
    assert "6 of 6  100.0%" in ran.stderr
    assert "B: tiny@-1" in ran.stdout


@contextmanager
def answering(*events: dict[str, Any]) -> Iterator[str]:
    """The URL of a server whose streams have these events."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for event in events:
                self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("events", "error", "said"),
    [
        ([{"status": 503, "title": "Stopped.", "detail": "it stops"}], ServiceUnavailable, "stops"),
        ([{"status": 422, "title": "No."}], Refused, "No"),
        ([], ServiceUnavailable, "without a result"),
    ],
)
def test_a_stream_that_fails_is_an_error_of_the_command(
    events: list[dict[str, Any]], error: type[Exception], said: str
) -> None:
    begun = {"object": "comparison.progress", "done": 0, "total": 2}
    seen = []
    with answering(begun, *events) as url, pytest.raises(error, match=said):
        ServiceClient(url).work("/compare", {}, lambda *counts: seen.append(counts), 30)
    assert seen == [(0, 2)]
