"""Requests to the servers of others, by httpx2."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

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
            yield HttpResponse(source)


class HttpResponse:
    """A response that may be a stream of events. What is left of it is cancelled at the end."""

    def __init__(self, source: httpx2.EventSource) -> None:
        self._source = source

    @property
    def status(self) -> int:
        return self._source.response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        """By names in lower case."""
        return self._source.response.headers

    async def beginning(self, num_bytes: int) -> bytes:
        """At most so much of the body. Raises ``httpx2.HTTPError``."""
        found = b""
        async for part in self._source.response.aiter_bytes():
            found += part
            if len(found) > num_bytes:
                break
        return found[:num_bytes]

    async def data(self) -> AsyncIterator[str]:
        """Of each event, as it arrives. Raises ``httpx2.HTTPError``."""
        async for event in self._source:
            yield event.data
