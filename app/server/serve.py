"""``sleb serve``: the API under uvicorn, with the job store it needs."""

import asyncio
import logging
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import uvicorn
from asgi_correlation_id import correlation_id

from app.api.deps import services_of
from app.auth.keys import caller
from app.auth.scopes import check_door
from app.config import ServeSettings
from app.main import create_app
from app.readiness import Readiness
from app.server.valkey import redis_url
from pruning.logs import set_up_logging
from pruning.models.store import set_up_torch

_LOOK_S = 0.1  # between two looks for a second Ctrl-C


def run_api(settings: ServeSettings) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running requests finish for ``drain_s``.

    Raises ``OpenDoor``.
    """
    check_door(settings)
    set_up_process(settings)
    signal.signal(signal.SIGTERM, leave)  # uvicorn raises it again when it has shut down
    with redis_url(settings) as url:
        config = uvicorn.Config(
            create_app(settings, redis_url=url),
            host=str(settings.host),
            port=settings.port,
            log_config=None,  # as everybody's
            log_level=settings.log_level,
            access_log=settings.log_level == "debug",
        )
        with suppress(KeyboardInterrupt):
            ApiServer(config).run()


def set_up_process(settings: ServeSettings) -> None:
    """Logging and torch, for any process that the app runs in."""
    set_up_logging(settings.log_level, settings.log_format, log_fields)
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # or it logs URLs, with their secrets
    set_up_torch(settings.threads)


class ApiServer(uvicorn.Server):
    """At the end says so while it still listens, and waits for the answers to what has begun.

    It does not wait for clients that only watch. One deadline holds for all of the shutdown.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        services = services_of(self.lifespan.state)
        services.readiness.drain(services.settings.drain_s)
        services.jobs.events.stop()
        await self._answer(services.readiness)
        await (
            services.generation.engine.stop()
        )  # what is not done by now is answered as far as it came
        services.generation.external.abort()
        self.config.timeout_graceful_shutdown = max(1, round(services.readiness.drain_s))
        await super().shutdown(sockets)

    async def _answer(self, readiness: Readiness) -> None:
        """Wait for the requests that have begun; a second Ctrl-C ends it."""
        begun = set(self.server_state.tasks)
        while begun and readiness.drain_s and not self.force_exit:
            _, begun = await asyncio.wait(begun, timeout=min(readiness.drain_s, _LOOK_S))


def leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End by unwinding, so that the embedded Valkey is let go of."""
    raise SystemExit(0)


def log_fields() -> Mapping[str, str]:
    """For what is logged while a request is answered."""
    found = {"request_id": correlation_id.get(), "key": caller.get()}
    return {name: value for name, value in found.items() if value}
