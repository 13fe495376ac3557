"""``sleb serve``: the API under uvicorn, with the job store it needs."""

import logging
import signal
import socket
from contextlib import suppress
from types import FrameType
from typing import NoReturn

import uvicorn

from app.config import ServeSettings
from app.main import create_app
from app.valkey import redis_url
from pruning.models import set_up_torch

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run_api(settings: ServeSettings) -> None:
    """Serve until SIGTERM or Ctrl-C, then let running requests finish for ``drain_s``."""
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT)
    set_up_torch(settings.threads)
    signal.signal(signal.SIGTERM, _leave)  # uvicorn raises it again when it has shut down
    with redis_url(settings) as url:
        config = uvicorn.Config(
            create_app(settings, redis_url=url),
            host=str(settings.host),
            port=settings.port,
            log_level=settings.log_level,
            access_log=settings.log_level == "debug",
            timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        )
        with suppress(KeyboardInterrupt):
            ApiServer(config).run()


class ApiServer(uvicorn.Server):
    """At the end, waits for the answers to requests, but not for clients that only watch."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan.state["services"].feed.stop()
        await super().shutdown(sockets)


def _leave(_signal: int, _frame: FrameType | None) -> NoReturn:
    """End by unwinding, so that the embedded Valkey is let go of."""
    raise SystemExit(0)
