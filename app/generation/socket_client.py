"""Requests to a server of this service on its Unix socket: HTTP/1.1 over kept connections.

The server may close a connection that is kept at the moment at which it is used again. A request
that it did not begin to answer there is sent again on a new connection: it has no other effect
than its response. Errors are those of httpx2, as of the clients of other servers.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httptools
import httpx2

_OK = 200
_KEPT_S = 2.0  # vLLM closes a connection that was idle for 5 s
_EVENT_END = b"\n\n"
_DATA = b"data: "
_DONE = b"data: [DONE]"


class SocketClient:
    """Bound to one event loop; must be closed. ``headers`` are sent with every request."""

    def __init__(
        self,
        socket: Path,
        base_url: str,
        headers: Mapping[str, str],
        connect_s: float,
        silence_s: float,
    ) -> None:
        self._socket = str(socket)
        address = urlsplit(base_url)
        self._base_path = address.path
        lines = {"Host": address.netloc, "Content-Type": "application/json", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._connect_s = connect_s
        self._silence_s = silence_s
        self._open: set[_Connection] = set()
        self._kept: dict[_Connection, asyncio.TimerHandle] = {}  # the last one was used last
        self._is_closed = False

    async def aclose(self) -> None:
        self._is_closed = True
        for connection in [*self._open]:
            connection.close()

    @asynccontextmanager
    async def post(self, path: str, body: Mapping[str, Any]) -> AsyncIterator["SocketResponse"]:
        """The response, once its headers are there. Leaving the context cancels what is left.

        Raises ``httpx2.TransportError``.
        """
        content = json.dumps(body).encode()
        async with self._answer(f"POST {self._base_path}{path}", content) as response:
            yield response

    async def is_healthy(self) -> bool:
        """Whether the server answers, and says that its engine is alive."""
        try:
            async with (
                asyncio.timeout(self._connect_s),
                self._answer("GET /health", b"") as response,
            ):
                return response.status == _OK
        except (httpx2.TransportError, TimeoutError):
            return False

    @asynccontextmanager
    async def _answer(self, what: str, content: bytes) -> AsyncIterator["SocketResponse"]:
        head = f"{what} HTTP/1.1\r\n{self._headers}Content-Length: {len(content)}\r\n\r\n"
        connection, response = await self._asked(head.encode() + content)
        try:
            yield response
        finally:
            self._leave(connection, response)

    async def _asked(self, request: bytes) -> tuple["_Connection", "SocketResponse"]:
        kept = next((each for each in reversed(self._kept) if each.is_free), None)
        if kept is not None:
            self._kept.pop(kept).cancel()
            try:
                return kept, await self._begun(kept, request)
            except _NotAnswered:
                pass
        connection = await self._connected()
        return connection, await self._begun(connection, request)

    async def _connected(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                _, connection = await loop.create_unix_connection(
                    lambda: _Connection(self._forget), self._socket
                )
        except TimeoutError as error:
            raise httpx2.ConnectTimeout(f"{self._socket} does not accept connections") from error
        except OSError as error:
            raise httpx2.ConnectError(f"{self._socket}: {error}") from error
        self._open.add(connection)
        return connection

    async def _begun(self, connection: "_Connection", request: bytes) -> "SocketResponse":
        response = connection.ask(request, self._silence_s)
        try:
            await response.begun()
        except BaseException:
            connection.close()
            raise
        return response

    def _leave(self, connection: "_Connection", response: "SocketResponse") -> None:
        """Keep the connection, if nothing more than the end of the response is to come."""
        if self._is_closed or not response.is_read:
            connection.close()
        elif connection in self._open:
            loop = asyncio.get_running_loop()
            self._kept[connection] = loop.call_later(_KEPT_S, connection.close)

    def _forget(self, connection: "_Connection") -> None:
        self._open.discard(connection)
        if (timer := self._kept.pop(connection, None)) is not None:
            timer.cancel()


class _NotAnswered(httpx2.RemoteProtocolError):
    """The connection was closed before the first byte of the response."""


class SocketResponse:
    """A response that arrives, and an iterator over the data of its events."""

    def __init__(self, silence_s: float) -> None:
        self._silence_s = silence_s
        self._body = bytearray()  # what was not taken
        self._num_searched = 0  # bytes of it, without the end of an event
        self._news = asyncio.Event()
        self._is_last_event_taken = False
        self.status = 0  # until the headers are there
        self.headers: dict[str, str] = {}  # by names in lower case
        self.is_whole = False
        self.failure: httpx2.TransportError | None = None

    @property
    def is_read(self) -> bool:
        """Whether it has ended, or its last event was taken, which is followed by the end alone."""
        return self.is_whole or (self._is_last_event_taken and self.failure is None)

    async def begun(self) -> None:
        """Wait for the headers. Raises ``httpx2.TransportError``."""
        while not self.status:
            await self._changed()

    async def beginning(self, num_bytes: int) -> bytes:
        while len(self._body) < num_bytes and not self.is_whole:
            await self._changed()
        return bytes(self._body[:num_bytes])

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        while (data := self._taken()) is None:
            if self.is_whole:
                raise StopAsyncIteration
            await self._changed()
        return data

    def _taken(self) -> str | None:
        """The data of the next event; None if it is not there yet."""
        while (end := self._body.find(_EVENT_END, self._num_searched)) >= 0:
            event = bytes(self._body[:end])
            del self._body[: end + len(_EVENT_END)]
            self._num_searched = 0
            if event.startswith(_DATA):
                self._is_last_event_taken = event == _DONE
                return event.removeprefix(_DATA).decode(errors="replace")
        self._num_searched = max(0, len(self._body) - 1)
        return None

    async def _changed(self) -> None:
        """Wait for more of it. Raises ``httpx2.TransportError``."""
        if self.failure is not None:
            raise self.failure
        self._news.clear()
        try:
            async with asyncio.timeout(self._silence_s):
                await self._news.wait()
        except TimeoutError as error:
            raise httpx2.ReadTimeout(f"no data for {self._silence_s:g} s") from error

    def begin(self, status: int) -> None:
        self.status = status
        self._news.set()

    def add(self, part: bytes) -> None:
        self._body += part
        self._news.set()

    def end(self, failure: httpx2.TransportError | None = None) -> None:
        """Nothing more comes; with a failure it is not whole."""
        self.is_whole, self.failure = failure is None, failure
        self._news.set()


class _Connection(asyncio.Protocol):
    """A connection, and the response that it is reading. ``lost`` is called at its end."""

    _transport: asyncio.Transport

    def __init__(self, lost: Callable[["_Connection"], None]) -> None:
        self._lost = lost
        self._parser = httptools.HttpResponseParser(self)
        self._response = SocketResponse(0.0)
        self._response.end()  # none is awaited
        self._has_answered = False

    @property
    def is_free(self) -> bool:
        """Whether another request may be sent on it."""
        return self._response.is_whole and not self._transport.is_closing()

    def ask(self, request: bytes, silence_s: float) -> SocketResponse:
        self._response = SocketResponse(silence_s)
        self._has_answered = False
        self._transport.write(request)
        return self._response

    def close(self) -> None:
        """What was not sent or read is given up."""
        self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # a Unix socket's
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._has_answered = True
        if self._response.is_whole:  # none was asked for
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(httpx2.RemoteProtocolError(f"not HTTP: {error}"))
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._has_answered:
            self._end(_NotAnswered("the connection was closed without a response"))
        elif error is not None:
            self._end(httpx2.ReadError(str(error)))
        else:
            self._end(
                httpx2.RemoteProtocolError(
                    "the connection was closed before the response was complete"
                )
            )
        self._lost(self)

    def _end(self, failure: httpx2.TransportError) -> None:
        if not self._response.is_whole and self._response.failure is None:
            self._response.end(failure)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._response.begin(self._parser.get_status_code())

    def on_body(self, part: bytes) -> None:
        self._response.add(part)

    def on_message_complete(self) -> None:
        self._response.end()
        if not self._parser.should_keep_alive():
            self.close()
