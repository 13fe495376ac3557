"""A POST whose answer is read as it comes: plain HTTP/1.1 on asyncio, and nothing else.

The client shares the machine with the server, so whatever it takes is missing there.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from urllib.parse import urlsplit


class BadAnswer(RuntimeError):
    """The server has refused a request, or broken off."""


async def post(url: str, body: object) -> AsyncGenerator[bytes, None]:
    """The parts of a chunked answer with status 200, as the server has cut them.

    Raises ``BadAnswer`` or ``OSError``.
    """
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    content = json.dumps(body).encode()
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    try:
        writer.write(head.encode() + content)
        async with aclosing(_chunks(reader, url)) as chunks:
            async for chunk in chunks:
                yield chunk
    except asyncio.IncompleteReadError as error:
        raise BadAnswer(f"{url} broke off in the middle of its answer") from error
    finally:
        writer.close()


async def _chunks(reader: asyncio.StreamReader, url: str) -> AsyncGenerator[bytes, None]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head.split(maxsplit=2)[1])
    if status != 200 or b"transfer-encoding: chunked" not in head:
        text = (await reader.read()).decode(errors="replace")
        raise BadAnswer(f"{url} answered {status}, expected a stream and 200: {text[:500]}")
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)  # the line's end behind a chunk
