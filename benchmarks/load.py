"""A load generator for ``/v1/completions`` that records when each streamed event arrives.

It shares the machine with the server, so a response is parsed after its end only.
"""

import asyncio
import json
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

from benchmarks.latencies import Pass, RequestTiming
from benchmarks.offline import checked_timing
from benchmarks.servers import Server, ServerFailed
from benchmarks.workload import SampleRequest

_TIMEOUT_S = 600.0
_DATA = b"data: "
_DONE = b"data: [DONE]"


Chunk = tuple[float, bytes]  # time of arrival by ``time.perf_counter``, and data


class BadResponse(RuntimeError):
    """The server refused a request, or closed the connection before the end of its response."""


@dataclass(frozen=True)
class Answer:
    """What a server gave to a request."""

    timing: RequestTiming
    text: str
    num_cached: int  # tokens of the prompt that it did not read again, 0 if it does not say


Client = Generator[SampleRequest, Answer, None]  # what it sends, each after the answer before


def closed_loop(server: Server, requests: Sequence[SampleRequest], concurrency: int) -> Pass:
    """Send requests from ``concurrency`` clients, each one request at a time.

    Raises ``BadResponse``, ``ServerFailed``, or ``WrongLength`` for an unexpected number of tokens.
    """
    return asyncio.run(_closed_loop(server, requests, concurrency))


def clients_at_once(server: Server, clients: Sequence[Client]) -> float:
    """Let these clients send their requests at the same time. Returns the seconds of all.

    Raises the same errors as ``closed_loop``.
    """
    return asyncio.run(_clients_at_once(server, clients))


async def _closed_loop(server: Server, requests: Sequence[SampleRequest], concurrency: int) -> Pass:
    timings: dict[int, RequestTiming] = {}
    waiting = iter(enumerate(requests))  # shared by all clients

    async def client() -> None:
        for number, request in waiting:
            timings[number] = (await _send(server, request)).timing

    began_s = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    seconds = time.perf_counter() - began_s
    return Pass(seconds, tuple(timings[number] for number in range(len(requests))))


async def _clients_at_once(server: Server, clients: Sequence[Client]) -> float:
    async def run(client: Client) -> None:
        try:
            request = next(client)
            while True:
                request = client.send(await _send(server, request))
        except StopIteration:
            return

    began_s = time.perf_counter()
    await asyncio.gather(*map(run, clients))
    return time.perf_counter() - began_s


async def _send(server: Server, request: SampleRequest) -> Answer:
    sent_s = time.perf_counter()
    async with asyncio.timeout(_TIMEOUT_S):
        chunks = await _post(server, server.body(request))
    events = list(_events(chunks))
    usage = _usage(events[-1][1] if events else b"")
    # The last event has the usage and no text: its time counts only if there is no other.
    received_s = [moment for moment, _ in events][:-1] or [moment for moment, _ in events]
    timing = checked_timing(sent_s, received_s, request, usage["completion_tokens"])
    details = usage.get("prompt_tokens_details") or {}
    return Answer(timing, _text(events), details.get("cached_tokens") or 0)


def _events(chunks: Iterable[Chunk]) -> Iterable[tuple[float, bytes]]:
    """When each event with data arrived, and its data."""
    rest = b""
    for moment, chunk in chunks:
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            if event.startswith(_DATA) and event != _DONE:
                yield moment, event.removeprefix(_DATA)


def _usage(last: bytes) -> Mapping[str, Any]:
    try:
        usage: Mapping[str, Any] = json.loads(last)["usage"]
        int(usage["completion_tokens"])
    except (ValueError, KeyError, TypeError) as error:
        text = last.decode(errors="replace")
        raise ServerFailed(f"the stream does not end with usage, but with {text!r}") from error
    return usage


def _text(events: Iterable[tuple[float, bytes]]) -> str:
    choices = (json.loads(data).get("choices") or [] for _, data in events)
    return "".join(each.get("text") or "" for some in choices for each in some)


async def _post(server: Server, body: object) -> list[Chunk]:
    """Post JSON and return the parts of the response, which must have status 200.

    Raises ``BadResponse`` or ``OSError``.
    """
    url = f"{server.url}/v1/completions"
    address = urlsplit(url)
    content = json.dumps(body).encode()
    key = f"Authorization: Bearer {server.key}\r\n" if server.key else ""
    head = (
        f"POST {address.path} HTTP/1.1\r\nHost: {address.netloc}\r\nConnection: close\r\n{key}"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    if server.socket is None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port or 80)
    else:
        reader, writer = await asyncio.open_unix_connection(server.socket)
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
