"""A POST whose answer is noted as it comes, and read when it is over: plain HTTP/1.1 on asyncio.

The client shares the machine with the server, so whatever it takes is missing there.
"""

import asyncio
import json
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from urllib.parse import urlsplit

Part = tuple[float, bytes]  # with the moment of its arrival, by ``time.perf_counter``


class BadAnswer(RuntimeError):
    """The server has refused a request, or broken off."""


async def post(url: str, body: object) -> list[Part]:
    """The parts of a chunked answer with status 200, as the server has cut them.

    Raises ``BadAnswer`` or ``OSError``.
    """
    address = urlsplit(url)
    content = json.dumps(body).encode()
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    host, port = str(address.hostname), address.port or 80
    transport, answer = await loop.create_connection(_Answer, host, port)
    try:
        transport.write(head.encode() + content)
        await answer.is_over
    finally:
        transport.close()
    try:
        return list(_parts(answer.came, url))
    except ValueError as error:
        raise BadAnswer(f"{url} broke off in the middle of its answer") from error


class _Answer(asyncio.Protocol):
    """What has come on one connection, until the server closes it."""

    def __init__(self) -> None:
        self.came: list[Part] = []
        self.is_over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.came.append((time.perf_counter(), data))

    def connection_lost(self, error: Exception | None) -> None:
        if self.is_over.done():
            return
        if error is None:
            self.is_over.set_result(None)
        else:
            self.is_over.set_exception(error)


def _parts(came: Sequence[Part], url: str) -> Iterator[Part]:
    """Raises ``ValueError`` for an answer without an end."""
    received = b"".join(data for _, data in came)
    ends = list(accumulate(len(data) for _, data in came))
    at = received.index(b"\r\n\r\n") + 4
    head = received[:at].lower()
    status = int(head.split(maxsplit=2)[1])
    if status != 200 or b"transfer-encoding: chunked" not in head:
        text = received[at:].decode(errors="replace")
        raise BadAnswer(f"{url} answered {status}, expected a stream and 200: {text[:500]}")
    while True:
        line_end = received.index(b"\r\n", at)
        start, end = line_end + 2, line_end + 2 + int(received[at:line_end], 16)
        if start == end:
            return
        at = received.index(b"\r\n", end) + 2
        yield came[bisect_left(ends, end)][0], received[start:end]
