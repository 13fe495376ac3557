"""Signed POST requests of webhook messages, sent to the very address that was checked.

Signatures follow https://www.standardwebhooks.com.
"""

import asyncio
import hmac
import ssl
import time
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx2

from app.webhooks.target import (
    Address,
    AddressRule,
    InvalidWebhook,
    Resolver,
    UnknownHost,
    allowed_addresses,
    parse,
    resolve,
)

TIMEOUT_S = 15.0  # in total: lookup of the name, connection, headers of the response
CONNECT_S = 5.0  # per address, which leaves time for the next one
NUM_LOOKUPS = 8
_SECRET_PREFIX = "whsec_"  # noqa: S105 - of a secret


@dataclass(frozen=True)
class SendResult:
    """``error`` is the reason why the message was not accepted; None if it was."""

    status: int | None
    error: str | None

    @property
    def is_gone(self) -> bool:
        """Whether the receiver refuses all further attempts."""
        return self.status == 410


class WebhookSender:
    """Sends messages signed with ``secret`` to addresses that ``is_allowed`` accepts."""

    def __init__(
        self,
        secret: str,
        is_allowed: AddressRule,
        *,
        resolver: Resolver = resolve,
        tls: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._key = b64decode(secret.removeprefix(_SECRET_PREFIX))
        self._is_allowed = is_allowed
        self._resolver = resolver
        self._tls = tls or httpx2.create_ssl_context()
        self._timeout_s = timeout_s
        # a pool of its own: a resolver that hangs must not use up the threads of other work
        self._lookups = ThreadPoolExecutor(NUM_LOOKUPS, thread_name_prefix="webhook-lookup")

    def close(self) -> None:
        self._lookups.shutdown(wait=False, cancel_futures=True)

    async def send(self, message_id: str, url: str, body: str) -> SendResult:
        """Send one POST request. Follows no redirect, and ignores the body of the response."""
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._send(message_id, parse(url), body)
        except TimeoutError:
            return SendResult(None, f"no response within {self._timeout_s:g} s")
        except (InvalidWebhook, UnknownHost) as error:
            return SendResult(None, str(error))
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            return SendResult(None, f"no response: {type(error).__name__} {error}".rstrip())
        return SendResult(status, _refusal(status))

    async def _send(self, message_id: str, url: httpx2.URL, body: str) -> int:
        loop = asyncio.get_running_loop()
        addresses = await loop.run_in_executor(
            self._lookups, allowed_addresses, url, self._is_allowed, self._resolver
        )
        headers = self._headers(message_id, url, body)
        *others, last = addresses
        for address in others:
            try:
                return await self._post(url, address, headers, body)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue
        return await self._post(url, last, headers, body)

    def _headers(self, message_id: str, url: httpx2.URL, body: str) -> dict[str, str]:
        timestamp = int(time.time())
        return {
            "Host": url.netloc.decode("ascii"),
            "User-Agent": "sleb-serve",
            "Content-Type": "application/json",
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": _signature(self._key, message_id, timestamp, body),
        }

    async def _post(
        self, url: httpx2.URL, address: Address, headers: dict[str, str], body: str
    ) -> int:
        """Send without a proxy of the environment, which would resolve the name again."""
        client = httpx2.AsyncClient(
            verify=self._tls,
            trust_env=False,
            timeout=httpx2.Timeout(self._timeout_s, connect=CONNECT_S),
        )
        request = client.build_request(
            "POST",
            url.copy_with(host=str(address)),
            headers=headers,
            content=body,
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        # a new client each time: a kept connection would skip the check of addresses
        async with client:
            response = await client.send(request, stream=True, follow_redirects=False)
            await response.aclose()
            return response.status_code


def _signature(key: bytes, message_id: str, timestamp: int, body: str) -> str:
    signed = hmac.digest(key, f"{message_id}.{timestamp}.{body}".encode(), "sha256")
    return f"v1,{b64encode(signed).decode()}"


def _refusal(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"returned {status}: redirects are not followed"
    return f"returned {status}"
