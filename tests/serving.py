"""The API on a port of its own, for what a client in the same process cannot see."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from app.config import ServeSettings
from app.main import create_app
from app.serve import ApiServer
from tests.waiting import wait_until


@contextmanager
def serving(
    settings: ServeSettings, redis_url: str, port: int = 0
) -> Iterator[tuple[ApiServer, str]]:
    """The API as ``sleb serve`` runs it, in a thread; stopped at the end, if it is not by then."""
    config = uvicorn.Config(
        create_app(settings, redis_url=redis_url), log_config=None, timeout_graceful_shutdown=60
    )
    server = ApiServer(config)
    with socket.create_server(("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: server.started, "the server listens")
            yield server, f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
