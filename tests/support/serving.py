"""The API as tests call it: by a client in this process, or on a port of its own."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.config import ServeSettings
from app.engine.engine import Engine
from app.main import create_app
from app.server.connections import limits_of
from app.server.serve import ApiServer
from app.server.tls import Certificates
from tests.support.waiting import LIMIT_S, wait_until


class LocalClient(TestClient):
    """Asks for localhost: without API keys, no other name is answered."""

    def __init__(self, app: FastAPI, *, raise_server_exceptions: bool = True) -> None:
        super().__init__(
            app, base_url="http://localhost", raise_server_exceptions=raise_server_exceptions
        )


@contextmanager
def serving(
    settings: ServeSettings, redis_url: str, port: int = 0, engine: Engine | None = None
) -> Iterator[tuple[ApiServer, str]]:
    """The API as ``sleb serve`` runs it, in a thread; stopped at the end, if it is not by then."""
    config = uvicorn.Config(
        create_app(settings, redis_url=redis_url, engine=engine), loop="asyncio", log_config=None
    )
    certificates = Certificates.of(settings)
    server = ApiServer(config, limits_of(settings.address_connections), certificates)
    scheme = "http" if certificates is None else "https"
    # said to be TCP, or asyncio leaves Nagle's algorithm on, and every answer takes 40 ms
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: server.started, "the server listens")
            yield server, f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(LIMIT_S)
            assert not thread.is_alive()


@contextmanager
def local_api(
    settings: ServeSettings, redis_url: str, engine: Engine | None = None, **changes: Any
) -> Iterator[LocalClient]:
    """A client of the API in this process, with ``changes`` to the settings; ready when given."""
    app = create_app(settings.model_copy(update=changes), redis_url=redis_url, engine=engine)
    with LocalClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200, "the API is ready")
        yield client
