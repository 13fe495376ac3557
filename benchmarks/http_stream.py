"""A POST request whose streamed response is timestamped as it arrives: HTTP/1.1 on asyncio.

The client shares the machine with the server, so the response is parsed after its end only.
"""

import asyncio
import json
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from urllib.parse import urlsplit

Chunk = tuple[float, bytes]  # time of arrival by ``time.perf_counter``, and data


class BadResponse(RuntimeError):
    """The server refused a request, or closed the connection before the end of its response."""


async def post(url: str, body: object) -> list[Chunk]:
    """Post JSON and return the chunks of the response, which must have status 200.

    Raises ``BadResponse`` or ``OSError``.
    """
    address = urlsplit(url)
    content = json.dumps(body).encode()
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    host, port = str(address.hostname), address.port or 80
    transport, response = await loop.create_connection(_Response, host, port)
    try:
        transport.write(head.encode() + content)
        await response.closed
    finally:
        transport.close()
    try:
        return list(_chunks(response.received, url))
    except ValueError as error:
        raise BadResponse(f"{url} closed the connection in the middle of its response") from error


class _Response(asyncio.Protocol):
    """Everything received on one connection until the server closes it."""

    def __init__(self) -> None:
        self.received: list[Chunk] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received.append((time.perf_counter(), data))

    def connection_lost(self, error: Exception | None) -> None:
        if self.closed.done():
            return
        if error is None:
            self.closed.set_result(None)
        else:
            self.closed.set_exception(error)


def _chunks(received: Sequence[Chunk], url: str) -> Iterator[Chunk]:
    """Decode the chunked transfer coding (RFC 9112, section 7.1).

    Raises ``ValueError`` if the last chunk is missing.
    """
    data = b"".join(part for _, part in received)
    ends = list(accumulate(len(part) for _, part in received))
    at = data.index(b"\r\n\r\n") + 4
    head = data[:at].lower()
    status = int(head.split(maxsplit=2)[1])
    if status != 200 or b"transfer-encoding: chunked" not in head:
        text = data[at:].decode(errors="replace")
        raise BadResponse(f"{url} answered {status}, expected a stream and 200: {text[:500]}")
    while True:
        line_end = data.index(b"\r\n", at)
        start, end = line_end + 2, line_end + 2 + int(data[at:line_end], 16)
        if start == end:
            return
        at = data.index(b"\r\n", end) + 2
        yield received[bisect_left(ends, end)][0], data[start:end]
