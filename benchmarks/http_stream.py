"""A POST request whose streamed response is timestamped as it arrives: HTTP/1.1 on asyncio.

The client shares the machine with the server, so the response is parsed after its end only.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

Chunk = tuple[float, bytes]  # time of arrival by ``time.perf_counter``, and data


class BadResponse(RuntimeError):
    """The server refused a request, or closed the connection before the end of its response."""


async def post(url: str, body: object) -> list[Chunk]:
    """Post JSON and return the parts of the response, which must have status 200.

    Raises ``BadResponse`` or ``OSError``.
    """
    address = urlsplit(url)
    content = json.dumps(body).encode()
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(address.hostname, address.port or 80)
    received: list[Chunk] = []
    try:
        writer.write(head.encode() + content)
        while data := await reader.read(2**16):
            received.append((time.perf_counter(), data))
    finally:
        writer.close()
    return _Response(received, url).chunks


class _Response:
    """The parts of the body, as the parser finds them. Raises ``BadResponse``."""

    def __init__(self, received: Sequence[Chunk], url: str) -> None:
        self.chunks: list[Chunk] = []
        self._moment = 0.0
        self._is_whole = False
        parser = HttpResponseParser(self)
        try:
            for self._moment, data in received:
                parser.feed_data(data)
        except HttpParserError as error:
            raise BadResponse(f"{url} sent what is no HTTP: {error}") from error
        status = parser.get_status_code()
        if status != 200:
            text = b"".join(part for _, part in self.chunks).decode(errors="replace")
            raise BadResponse(f"{url} answered {status}, expected a stream and 200: {text[:500]}")
        if not self._is_whole:
            raise BadResponse(f"{url} closed the connection in the middle of its response")

    def on_body(self, part: bytes) -> None:
        self.chunks.append((self._moment, part))

    def on_message_complete(self) -> None:
        self._is_whole = True
