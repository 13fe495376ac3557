"""``sleb serve``: the API under uvicorn, with the job store it needs."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import NoReturn

import uvicorn

from app.api.deps import services_of
from app.auth.keys import caller
from app.auth.scopes import check_address
from app.config import ServeSettings
from app.main import create_app
from app.readiness import Readiness
from app.request_id import current_request_id
from app.server.accepting import Acceptor
from app.server.connections import ConnectionLimits, limits_of, protocol_of
from app.server.tls import Certificates
from app.server.valkey import redis_url
from pruning.logs import set_up_logging
from pruning.models.store import set_up_torch

_SWITCH_INTERVAL_S = 0.0005  # a step waits so long for the interpreter, which a load holds
_POLL_S = 0.1  # between two checks for a second Ctrl-C


def run_api(settings: ServeSettings) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running requests finish for up to ``drain_s``.

    Raises ``UnprotectedAddress`` or ``InvalidCertificate``.
    """
    check_address(settings)
    certificates = Certificates.of(settings)
    set_up_process(settings)
    signal.signal(signal.SIGTERM, leave)  # uvicorn raises the signal again after its shutdown
    with redis_url(settings) as url:
        config = uvicorn.Config(
            create_app(settings, redis_url=url, describe_early=True),
            host=str(settings.host),
            port=settings.port,
            loop="asyncio",  # where connections can be accepted in the turns of their addresses
            log_config=None,  # keeps the logging of this process
            log_level=settings.log_level,
            access_log=settings.log_level == "debug",
        )
        server = ApiServer(config, limits_of(settings.address_connections), certificates)
        _leave_out_of_collections()
        with suppress(KeyboardInterrupt):
            server.run()


def set_up_process(settings: ServeSettings) -> None:
    """Set up logging and torch in a process that runs the app."""
    set_up_logging(settings.log_level, settings.log_format, log_fields)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # at INFO it logs URLs with their secrets
    set_up_torch(settings.threads)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)


class ApiServer(uvicorn.Server):
    """On shutdown, reports that it drains and finishes running requests while still listening.

    It does not wait for clients that follow events. The whole shutdown has one deadline.
    It cuts slow clients, and accepts from one address after the other. With ``certificates``, it
    serves HTTPS.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        limits: ConnectionLimits,
        certificates: Certificates | None = None,
    ) -> None:
        super().__init__(config)
        config.load()
        self._tls = None if certificates is None else certificates.context
        self._protocol = protocol_of(limits, self._tls)
        self._acceptor: Acceptor | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        protocol = partial(
            self._protocol,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        self._acceptor = Acceptor(protocol)
        for server in self.servers:
            for listening in server.sockets:
                self._acceptor.take_over(listening)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        services = services_of(self.lifespan.state)
        services.readiness.drain(services.settings.drain_s)
        services.jobs.events.stop()
        await self._finish_requests(services.readiness)
        await services.generation.engine.stop()  # unfinished requests get what was generated so far
        services.generation.generator.abort()
        self.config.timeout_graceful_shutdown = max(1, round(services.readiness.drain_s))
        if self._acceptor is not None:
            self._acceptor.close()
        await super().shutdown(sockets)

    def _log_started_message(self, listeners: Sequence[socket.SocketType]) -> None:
        self.config.ssl = self._tls  # for the scheme: the listeners are open and do without
        super()._log_started_message(listeners)

    async def _finish_requests(self, readiness: Readiness) -> None:
        """Wait for the running requests; a second Ctrl-C ends the wait."""
        running = set(self.server_state.tasks)
        while running and readiness.drain_s and not self.force_exit:
            _, running = await asyncio.wait(running, timeout=min(readiness.drain_s, _POLL_S))


def _leave_out_of_collections() -> None:
    """Exempt what lives as long as the process from garbage collections, which stop all threads.

    Parsing a large body sets off dozens: one of 4 MB stopped the event loop for 1.4 s, now 0.4 s.
    """
    gc.collect()
    gc.freeze()


def leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Exit by an exception, so that the embedded Valkey is released."""
    raise SystemExit(0)


def log_fields() -> Mapping[str, str]:
    """The fields of log lines written during a request."""
    key = caller.get()
    fields = {"request_id": current_request_id.get(), "key": key.name if key else None}
    return {name: value for name, value in fields.items() if value}
