"""Requests to the servers of others, by httpx2."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self, cast

import httpx2


class HttpClient:
    """Bound to one event loop; must be closed. ``headers`` are sent with every request.

    No connection is reused: the server may close it at that moment, and the request must not be
    sent twice.
    """

    def __init__(
        self, base_url: str, headers: Mapping[str, str], connect_s: float, silence_s: float
    ) -> None:
        self._base_url = base_url
        self._client = httpx2.AsyncClient(
            trust_env=False,  # proxies and keys come from the settings, not from .netrc
            headers=headers,
            timeout=httpx2.Timeout(silence_s, connect=connect_s, pool=None),
            transport=httpx2.AsyncHTTPTransport(
                trust_env=False,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
            ),
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    @asynccontextmanager
    async def post(self, path: str, body: Mapping[str, Any]) -> AsyncIterator["HttpResponse"]:
        """The response, once its headers are there. Raises ``httpx2.HTTPError``."""
        url = f"{self._base_url}{path}"
        async with self._client.sse(url, method="POST", json=body) as source:
            # a generator; the garbage collector may end what is left of one in another thread
            events = cast("AsyncGenerator[httpx2.ServerSentEvent, None]", aiter(source))
            async with aclosing(events):
                yield HttpResponse(source.response, events)


@dataclass(frozen=True)
class HttpResponse:
    """A response, and an iterator over the data of its events, if it has some.

    What is left of it is cancelled at the end.
    """

    response: httpx2.Response
    events: AsyncIterator[httpx2.ServerSentEvent]

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        """By names in lower case."""
        return self.response.headers

    async def beginning(self, num_bytes: int) -> bytes:
        """At most so much of the body. Raises ``httpx2.HTTPError``."""
        body = b""
        async with aclosing(self.response.aiter_bytes()) as parts:
            async for part in parts:
                body += part
                if len(body) > num_bytes:
                    break
        return body[:num_bytes]

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """Of the next event. Raises ``httpx2.HTTPError``."""
        return (await anext(self.events)).data
