"""Requests over a Unix socket, against a server that does what a test says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from app.generation import socket_client
from app.generation.socket_client import SocketClient

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


WHOLE = HEAD + chunk(b'data: {"a": 1}\n\n') + chunk(b"data: [DONE]\n\n") + END


class Server:
    """Answers the requests of each connection by ``lives``, the last one for all that follow."""

    def __init__(self, lives: Sequence[Answer]) -> None:
        self._lives = lives
        self.num_connections = 0
        self.requests: list[bytes] = []
        self.ended = asyncio.Event()  # once a client has closed its connection

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        life = self._lives[min(self.num_connections, len(self._lives) - 1)]
        self.num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                await life(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.ended.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(folder: Path, *lives: Answer) -> AsyncIterator[tuple[Server, SocketClient]]:
    server = Server(lives)
    path = folder / "socket"
    client = SocketClient(path, "http://host/v1", {"Authorization": "Bearer key"}, 100.0, 100.0)
    async with await asyncio.start_unix_server(server.serve, path):
        try:
            yield server, client
        finally:
            await client.aclose()


def says(content: bytes, *, then_close: bool = False) -> Answer:
    async def life(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        if then_close:
            await writer.drain()
            raise ConnectionError

    return life


async def events(client: SocketClient) -> list[str]:
    async with client.post("/completions", {"prompt": "é"}) as response:
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream"
        found = []
        async for data in response:
            found.append(data)
            if data == "[DONE]":
                break
        return found


def test_a_connection_is_used_again(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path, says(WHOLE)) as (server, client):
            for _ in range(3):
                assert await events(client) == ['{"a": 1}', "[DONE]"]
            assert server.num_connections == 1
            assert server.requests[0] == server.requests[2]
            head, _, body = server.requests[0].partition(b"\r\n\r\n")
            assert head.startswith(b"POST /v1/completions HTTP/1.1\r\nHost: host\r\n")
            assert b"\r\nAuthorization: Bearer key\r\n" in head
            assert body == b'{"prompt": "\\u00e9"}'

    asyncio.run(run())


def test_requests_at_once_have_connections_of_their_own(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path, says(WHOLE)) as (server, client):
            assert len(await asyncio.gather(*(events(client) for _ in range(4)))) == 4
            assert server.num_connections == 4

    asyncio.run(run())


def test_a_connection_that_the_server_closed_meanwhile_loses_nothing(tmp_path: Path) -> None:
    """It reads the second request there, and closes without an answer."""

    async def run() -> None:
        num_answered = 0

        async def once(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal num_answered
            num_answered += 1
            if num_answered == 2:
                raise ConnectionError
            writer.write(WHOLE)

        async with serving(tmp_path, once, says(WHOLE)) as (server, client):
            assert await events(client) == await events(client) == ['{"a": 1}', "[DONE]"]
            assert server.num_connections == 2
            assert len(server.requests) == 3

    asyncio.run(run())


@pytest.mark.parametrize("is_kept", [False, True])
def test_what_was_begun_to_be_answered_is_not_sent_again(tmp_path: Path, is_kept: bool) -> None:
    async def run() -> None:
        answers = [WHOLE] * is_kept + [HEAD[:20]]

        async def life(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(answers.pop(0))
            if not answers:
                await writer.drain()
                raise ConnectionError

        async with serving(tmp_path, life) as (server, client):
            if is_kept:
                await events(client)
            with pytest.raises(httpx2.RemoteProtocolError, match="before the response was"):
                await events(client)
            assert server.num_connections == 1
            assert len(server.requests) == 1 + is_kept

    asyncio.run(run())


def test_a_new_connection_is_not_tried_twice(tmp_path: Path) -> None:
    async def run() -> None:
        async with serving(tmp_path, says(b"", then_close=True)) as (server, client):
            with pytest.raises(httpx2.RemoteProtocolError, match="without a response"):
                await events(client)
            assert len(server.requests) == 1

    asyncio.run(run())


def test_leaving_a_response_ends_its_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_client, "_KEPT_S", 1e6)

    async def run() -> None:
        begun = HEAD + chunk(b"data: 1\n\n")
        async with serving(tmp_path, says(begun), says(WHOLE)) as (server, client):
            async with client.post("/completions", {}) as response:
                assert await anext(response) == "1"
            async with asyncio.timeout(100):
                await server.ended.wait()
            assert await events(client) == ['{"a": 1}', "[DONE]"]
            assert server.num_connections == 2

    asyncio.run(run())


def test_events_may_arrive_in_any_parts(tmp_path: Path) -> None:
    async def run() -> None:
        body = b': ping\n\ndata: {"a": "\xc3\xa9"}\n\ndata: 2\n\ndata: [DONE]\n\n'
        parts = HEAD + b"".join(chunk(body[at : at + 1]) for at in range(len(body))) + END
        async with serving(tmp_path, says(parts), says(HEAD + chunk(body) + END)) as (_, client):
            expected = ['{"a": "é"}', "2", "[DONE]"]
            assert await events(client) == expected
            async with client.post("/completions", {}) as response:
                assert [data async for data in response] == expected

    asyncio.run(run())


def test_an_error_is_read_up_to_a_limit(tmp_path: Path) -> None:
    async def run() -> None:
        refusal = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 12\r\n\r\nnot like this"[:-1]
        async with serving(tmp_path, says(refusal)) as (server, client):
            for num_bytes in (100, 3):
                async with client.post("/completions", {}) as response:
                    assert response.status == 400
                    found = await response.beginning(num_bytes)
                    assert found == b"not like thi"[:num_bytes]
            assert server.num_connections == 1

    asyncio.run(run())


def test_silence_and_a_missing_server_are_errors(tmp_path: Path) -> None:
    async def run() -> None:
        client = SocketClient(tmp_path / "none", "http://host", {}, 100.0, 100.0)
        with pytest.raises(httpx2.ConnectError, match="none"):
            await events(client)
        assert not await client.is_healthy()
        async with serving(tmp_path, says(HEAD)):
            silent = SocketClient(tmp_path / "socket", "http://host", {}, 100.0, 0.05)
            with pytest.raises(httpx2.ReadTimeout, match=r"0\.05 s"):
                await events(silent)
            await silent.aclose()

    asyncio.run(run())


@pytest.mark.parametrize(("status", "is_healthy"), [(b"200 OK", True), (b"503 No", False)])
def test_health_is_what_the_server_says(tmp_path: Path, status: bytes, is_healthy: bool) -> None:
    async def run() -> None:
        answer = b"HTTP/1.1 %b\r\ncontent-length: 0\r\n\r\n" % status
        async with serving(tmp_path, says(answer)) as (server, client):
            assert await client.is_healthy() is is_healthy
            assert server.requests[0].startswith(b"GET /health HTTP/1.1\r\n")

    asyncio.run(run())
