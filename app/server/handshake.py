"""Connections with TLS, counted and timed from their first byte.

uvicorn would hand over a connection after its handshake, so that clients which never finish one
were in no limit. Here a connection begins as plain TCP, and HTTP takes it over later.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

from app.server.connections import HEADERS_S, ConnectionLimits, GuardedProtocol

logger = logging.getLogger(__name__)

_Starting = Coroutine[Any, Any, asyncio.Transport | None]


def protocol_of(
    limits: ConnectionLimits, context: ssl.SSLContext | None
) -> Callable[..., asyncio.Protocol]:
    """What uvicorn calls for each connection, with the arguments of its protocols."""
    return limits.protocol if context is None else partial(_handshake, limits, context)


def _handshake(
    limits: ConnectionLimits,
    context: ssl.SSLContext,
    **arguments: Any,  # noqa: ANN401 - uvicorn's
) -> "Handshake":
    return Handshake(limits.protocol(**arguments), context)


class Handshake(asyncio.Protocol):
    """The beginning of a connection, which ``http`` counts from its start."""

    def __init__(self, http: GuardedProtocol, context: ssl.SSLContext) -> None:
        self._http = http
        self._context = context
        self._connections: set[Any] = http.connections  # which uvicorn ends by ``shutdown``
        self._early = bytearray()  # received before somebody was there to read it
        self._is_lost = False
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = plain = cast("asyncio.Transport", transport)
        self._http.begin(plain)
        self._connections.add(self)
        starting = self._http.loop.start_tls(
            plain,
            self,
            self._context,
            server_side=True,
            ssl_handshake_timeout=HEADERS_S,  # a limit of last resort: ``http`` has its own
        )
        self._task = self._http.loop.create_task(self._shake_hands(plain, starting))
        self._http.loop.call_soon(self._hand_on_client_hello)

    def data_received(self, data: bytes) -> None:
        self._early += data

    def connection_lost(self, _exc: Exception | None) -> None:
        self._is_lost = True

    def shutdown(self) -> None:
        """Called by uvicorn when it stops."""
        if self._transport is not None:
            self._transport.abort()

    def _hand_on_client_hello(self) -> None:
        """Runs after the first step of ``start_tls``, which has set the protocol and reads nothing
        yet: what was read before belongs to the handshake."""
        assert self._transport is not None
        if self._early:
            # that of uvloop has these methods without being such a class
            protocol = cast("asyncio.BufferedProtocol", self._transport.get_protocol())
            buffer = memoryview(protocol.get_buffer(len(self._early)))
            buffer[: len(self._early)] = self._early
            protocol.buffer_updated(len(self._early))
            self._early.clear()

    async def _shake_hands(self, transport: asyncio.Transport, starting: _Starting) -> None:
        encrypted: asyncio.Transport | None = None
        try:
            encrypted = await starting
        except OSError as error:  # also of TLS, and of a time that was too long
            logger.debug("a handshake failed: %s", error)
        finally:
            self._connections.discard(self)
            # an aborted handshake ends without an error
            is_over = encrypted is None or self._is_lost or transport.is_closing()
            if is_over:
                self._http.end()
        if encrypted is not None and not is_over:
            encrypted.set_protocol(self._http)
            self._http.connection_made(encrypted)
            if self._early:
                self._http.data_received(bytes(self._early))
