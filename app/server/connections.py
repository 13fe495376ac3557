"""Connections of the API, also with TLS: deadlines for slow clients, and limits in all and for one
address.

Beyond the limits, a connection is still accepted, but only questions about health are answered.
These do not wait for other requests.
"""

import asyncio
import logging
import resource
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, cast

from starlette.responses import JSONResponse
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_remote_addr

from app.server.fair_queue import FairQueue

logger = logging.getLogger(__name__)

HEADERS_S = 10.0  # from the beginning of a connection or request to the end of its headers
BODY_S = 20.0  # for the whole body, and a second more for each
BYTES_PER_S = 10_240
WRITE_S = 60.0  # without anything read by a client for which data waits
RESTRICTED_S = 2.0  # for the headers of a connection beyond the limits

NUM_RESERVED = 32  # connections beyond the limits that are open at once
MAX_CONNECTIONS = 2_048
_NUM_OWN_FILES = 64  # that this process may open later
_STARTS_PER_TURN = 2  # of requests, whose first steps take up to a millisecond
_OPEN_TO_ALL = ("/health", "/ping")

_TIMED_OUT = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_PROBLEM = {
    "type": "too-many-connections",
    "title": "Too many connections.",
    "status": 503,
    "detail": "too many open connections to this service, or from your address: close some, or "
    "retry later",
}
_REFUSAL = JSONResponse(
    _PROBLEM,
    503,
    {"Retry-After": f"{BODY_S:.0f}", "Connection": "close"},
    media_type="application/problem+json",
)


class ConnectionLimits:
    """Counts connections of one server."""

    def __init__(self, num_all: int, num_of_address: int | None = None) -> None:
        self._num_all = num_all
        self._num_of_address = num_of_address or max(1, num_all // 2)
        self._of_address: Counter[str] = Counter()
        self._restricted: dict[GuardedProtocol, None] = {}  # the oldest is the first

    def admit(self, connection: "GuardedProtocol", address: str) -> bool:
        """Count a connection, or say that it is beyond the limits.

        A new one beyond the limits ends the oldest of its kind that has not sent its headers, if
        there are too many: a client that asks for health sends them at once.
        """
        is_within = self._of_address[address] < self._num_of_address
        if is_within and self._of_address.total() < self._num_all:
            self._of_address[address] += 1
            return True
        self._restricted[connection] = None
        if len(self._restricted) > NUM_RESERVED:
            next(iter(self._restricted)).cut()
        return False

    def forget(self, connection: "GuardedProtocol", address: str) -> None:
        if connection in self._restricted:
            del self._restricted[connection]
            return
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]


class GuardedProtocol(HttpToolsProtocol):
    """HTTP of uvicorn, with deadlines for what a client sends and reads."""

    def __init__(self, limits: ConnectionLimits, queue: FairQueue, **arguments: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(**arguments)
        self._limits = limits
        self._queue = queue
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._is_admitted: bool | None = None  # None: not counted
        self._is_http = False  # and not a handshake of TLS before it
        self._address = ""
        self._began_s = 0.0  # of what is awaited
        self._num_bytes = 0  # of the body so far

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's name
        if self._is_admitted is None:
            self.begin(transport)
        self._is_http = True
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.end()
        super().connection_lost(exc)

    def begin(self, transport: asyncio.Transport) -> None:
        """Count the connection, whose headers are awaited from now on, behind TLS if it has it."""
        self.transport = transport
        client = get_remote_addr(transport)
        self._address = client[0] if client else ""
        self._is_admitted = self._limits.admit(self, self._address)
        self._expect(HEADERS_S if self._is_admitted else RESTRICTED_S)

    def end(self) -> None:
        """Count it no more."""
        self._stop_reading_timer()
        self._stop_writing_timer()
        self._limits.forget(self, self._address)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._reading is None:
            self._expect(HEADERS_S)

    def on_headers_complete(self) -> None:
        self._num_bytes = 0
        self._expect(BODY_S, is_body=True)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._num_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stop_reading_timer()
        super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._writing = self.loop.call_later(WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_writing_timer()

    def cut(self) -> None:
        """End the connection of a client that is too slow."""
        self._stop_reading_timer()
        if not self._is_http:
            self.transport.abort()
            return
        if self.cycle is None or not self.cycle.response_started:
            self.transport.write(_TIMED_OUT)
        self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - uvicorn's
        is_health = cycle.scope["path"].startswith(_OPEN_TO_ALL)
        if not self._is_admitted:
            cycle.keep_alive = False
            app = app if is_health else _REFUSAL
        start = partial(self._start, cycle, app)
        if is_health:
            start()
        else:
            self._queue.add(self._address, start)

    def _start(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - uvicorn's
        if not cycle.disconnected:
            super()._start_asgi_task(cycle, app)

    def _expect(self, timeout_s: float, *, is_body: bool = False) -> None:
        """Cut the client if the headers, or the body, have not arrived by then."""
        self._stop_reading_timer()
        self._began_s = self.loop.time()
        self._reading = self.loop.call_later(timeout_s, self._check, timeout_s, is_body)

    def _check(self, timeout_s: float, is_body: bool) -> None:
        self._reading = None
        is_paused = self._is_http and self.flow.read_paused
        if is_paused or (is_body and self.cycle.waiting_for_100_continue):
            self._expect(timeout_s, is_body=is_body)  # the client waits for this process
            return
        steady_s = self._num_bytes / BYTES_PER_S if is_body else 0.0
        left_s = self._began_s + timeout_s + steady_s - self.loop.time()
        if left_s > 0:
            self._reading = self.loop.call_later(left_s, self._check, timeout_s, is_body)
        else:
            self.cut()

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _stop_writing_timer(self) -> None:
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None


class Handshake(asyncio.Protocol):
    """The beginning of a connection with TLS, which ``http`` counts and times from its first byte.

    uvicorn would hand over a connection after its handshake, so that clients which never finish one
    were in no limit. Here a connection begins as plain TCP, and HTTP takes it over later.
    """

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

    async def _shake_hands(
        self, transport: asyncio.Transport, starting: Coroutine[Any, Any, asyncio.Transport | None]
    ) -> None:
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


def protocol_of(
    limits: ConnectionLimits, context: ssl.SSLContext | None
) -> Callable[..., asyncio.Protocol]:
    """What uvicorn calls for each connection, with the arguments of its protocols."""
    queue = FairQueue(_STARTS_PER_TURN)

    def protocol(**arguments: Any) -> asyncio.Protocol:  # noqa: ANN401 - uvicorn's
        http = GuardedProtocol(limits, queue, **arguments)
        return http if context is None else Handshake(http, context)

    return protocol


def limits_of(num_of_address: int | None) -> ConnectionLimits:
    """The limits that the open files of this process allow, of which it takes all that it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + NUM_RESERVED + 2 * _NUM_OWN_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    num_free = soft - num_open_files() - NUM_RESERVED - _NUM_OWN_FILES
    return ConnectionLimits(max(1, min(num_free, MAX_CONNECTIONS)), num_of_address)


def num_open_files() -> int:
    folder = Path("/proc/self/fd")
    return sum(1 for _ in folder.iterdir()) if folder.exists() else _NUM_OWN_FILES
