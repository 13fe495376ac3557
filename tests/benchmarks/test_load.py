"""The load generator against the API: both count the same tokens."""

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from app.config import ServeSettings
from benchmarks.latencies import Pass
from benchmarks.load import BadResponse, closed_loop
from benchmarks.offline import WrongLength
from benchmarks.servers import Server, ServerFailed
from benchmarks.workload import Prompts, SampleRequest
from pruning.models.store import LoadedModel
from tests.support.peers import FORCED
from tests.support.serving import serving
from tests.support.waiting import wait_until


@pytest.fixture
def server(tmp_path: Path, tiny_models_dir: Path, redis_url: str) -> Iterator[Server]:
    assert tiny_models_dir.parent == tmp_path
    settings = ServeSettings(data_dir=tmp_path, max_num_seqs=3, drain_s=0)
    with serving(settings, redis_url) as (_, url):
        yield Server(url, "tiny", extra=FORCED)


@pytest.fixture
def requests(tiny_loaded: LoadedModel) -> list[SampleRequest]:
    return Prompts(tiny_loaded.tokenizer, seed=0).mixed(8, (3, 12), (1, 30))


def counted(server: Server, metric: str) -> float:
    """Total of a metric of the service."""
    text = httpx2.get(f"{server.url}/metrics").text
    values = re.findall(rf"^{metric}{{.*?}} (.+)$", text, re.MULTILINE)
    return sum(map(float, values))


def test_a_closed_loop_counts_every_token(server: Server, requests: list[SampleRequest]) -> None:
    found = closed_loop(server, requests, concurrency=4)
    assert [timing.num_tokens for timing in found.timings] == [
        request.num_new_tokens for request in requests
    ]
    expected = {
        "sleb_generation_tokens_total": found.num_tokens,
        "sleb_prompt_tokens_total": sum(len(request.prompt_ids) for request in requests),
        "sleb_request_success_total": len(requests),
    }
    wait_until(
        lambda: {metric: counted(server, metric) for metric in expected} == expected,
        "the service counts the same tokens",
    )
    for timing, request in zip(found.timings, requests, strict=True):
        assert timing.sent_s < timing.received_s[0] <= timing.received_s[-1]
        assert 1 <= len(timing.received_s) <= request.num_new_tokens
        assert timing.received_s[-1] - timing.sent_s <= found.seconds


def test_what_goes_wrong_is_no_result(server: Server, requests: list[SampleRequest]) -> None:
    with pytest.raises(
        BadResponse, match=r"(?s)answered 404, expected a stream.*no model named 'other'"
    ):
        closed_loop(replace(server, model="other"), requests, concurrency=2)
    without_usage = {"temperature": 0, "ignore_eos": True}
    with pytest.raises(ServerFailed, match="does not end with usage"):
        closed_loop(replace(server, extra=without_usage), requests[:1], concurrency=1)
    cut = {**FORCED, "max_tokens": 2}
    with pytest.raises(WrongLength, match="got 2"):
        closed_loop(replace(server, extra=cut), requests[:3], concurrency=3)


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ONE_REQUEST = SampleRequest("a", (1,), 3)
USAGE = b'data: {"usage":{"completion_tokens":3}}\n\n'


def response_of(*writes: bytes) -> Pass:
    """The pass of one request for three tokens, to which a server responds with these writes."""

    async def run() -> Pass:
        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"}")
            for write in writes:
                writer.write(write)
                await writer.drain()
            writer.close()

        async with await asyncio.start_server(respond, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            server = Server(f"http://127.0.0.1:{port}", "m", extra={})
            return await asyncio.to_thread(closed_loop, server, [ONE_REQUEST], 1)

    return asyncio.run(run())


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text)


def test_events_may_be_cut_anywhere_and_lie_together() -> None:
    events = (
        b": a comment\n\n" + b'data: {"a":1}\n\ndata: {"b":2}\n\n' + USAGE + b"data: [DONE]\n\n"
    )
    together = response_of(HEAD, chunk(events), chunk(b""))
    bytewise = b"".join(chunk(events[at : at + 1]) for at in range(len(events))) + chunk(b"")
    for found in (
        together,
        response_of(HEAD + bytewise),
        response_of(HEAD[:20], HEAD[20:] + bytewise),
    ):
        (timing,) = found.timings
        assert (len(timing.received_s), timing.num_tokens) == (2, 3)


def test_an_answer_that_breaks_off_is_no_result() -> None:
    with pytest.raises(BadResponse, match="in the middle of its response"):
        response_of(HEAD, chunk(b'data: {"a":1}\n\n'))
    with pytest.raises(BadResponse, match="in the middle of its response"):
        response_of(HEAD, b"ff\r\ndata")
    with pytest.raises(ServerFailed, match="does not end with usage"):
        response_of(HEAD, chunk(b'data: {"error": "busy"}\n\n'), chunk(b""))


def test_a_server_may_listen_on_a_unix_socket_and_ask_for_a_key(tmp_path: Path) -> None:
    server = Server("http://m", "m", extra={}, socket=tmp_path / "socket", key="a-key")
    heads: list[bytes] = []

    async def run() -> Pass:
        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"}"))
            writer.write(HEAD + chunk(USAGE) + chunk(b""))
            writer.close()

        async with await asyncio.start_unix_server(respond, server.socket):
            return await asyncio.to_thread(closed_loop, server, [ONE_REQUEST], 1)

    assert asyncio.run(run()).num_tokens == 3
    assert b"\r\nAuthorization: Bearer a-key\r\n" in heads[0]
