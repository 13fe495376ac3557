"""Connections with TLS are in the limits and deadlines before their handshake has ended."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from app.config import ServeSettings
from app.server import connections
from app.server.connections import ConnectionLimits
from app.server.serve import ApiServer
from tests.support.certificates import Files
from tests.support.plain_sockets import HALF_HEAD, connected, status_of
from tests.support.serving import serving
from tests.support.waiting import wait_until

RECORD = b"\x16\x03\x01\x02\x00\x01\x00"  # the beginning of a ClientHello of 512 bytes


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@contextmanager
def api(
    settings: ServeSettings, redis_url: str, files: Files, limits: ConnectionLimits | None = None
) -> Iterator[tuple[ApiServer, str, httpx2.Client]]:
    context = files.client_context()
    with pytest.MonkeyPatch.context() as patch:
        if limits is not None:
            patch.setattr("tests.support.serving.limits_of", lambda _number: limits)
        with (
            serving(settings.model_copy(update=files.settings), redis_url) as (server, url),
            httpx2.Client(verify=context, base_url=url, headers={"connection": "close"}) as us,
        ):
            wait_until(lambda: us.get("/health/ready").is_success, "the API is ready")
            wait_until(lambda: not server.server_state.connections, "no client is connected")
            yield server, url, us


@pytest.mark.parametrize("parts", [(), (RECORD,)])
def test_a_client_that_ends_no_handshake_is_cut(
    settings: ServeSettings,
    redis_url: str,
    files: Files,
    parts: tuple[bytes, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with api(settings, redis_url, files) as (server, url, _):
        monkeypatch.setattr(connections, "HEADERS_S", 0.3)
        with connected(url, *parts) as connection:
            assert ended(connection)
        wait_until(lambda: not server.server_state.connections, "no client is connected")


def ended(connection: socket.socket) -> bool:
    """Whether the server ends it, by a reset or not, before the timeout of the socket."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_half_a_head_behind_a_handshake_is_cut(
    settings: ServeSettings, redis_url: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = files.client_context()
    with api(settings, redis_url, files) as (server, url, _):
        monkeypatch.setattr(connections, "HEADERS_S", 2.0)  # for the handshake too
        with (
            connected(url) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(HALF_HEAD)
            assert status_of(connection) == 408
        wait_until(lambda: not server.server_state.connections, "no client is connected")


def test_handshakes_are_in_the_limit_of_an_address(
    settings: ServeSettings, redis_url: str, files: Files
) -> None:
    with api(settings, redis_url, files, ConnectionLimits(4, 2)) as (server, url, client):
        with connected(url), connected(url, RECORD):
            wait_until(lambda: len(server.server_state.connections) == 2, "both are connected")
            assert client.get("/models").json()["type"] == "too-many-connections"
            assert client.get("/health/live").status_code == 200
        wait_until(lambda: client.get("/models").status_code == 200, "the connections are closed")


def test_more_handshakes_than_are_reserved_do_not_lock_health_out(
    settings: ServeSettings, redis_url: str, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "NUM_RESERVED", 4)
    limits = ConnectionLimits(2)
    with api(settings, redis_url, files, limits) as (_, url, client), ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(connected(url, RECORD))
        for _ in range(5):
            assert client.get("/health/live").status_code == 200


def test_what_follows_a_handshake_at_once_is_not_lost(
    settings: ServeSettings, redis_url: str, files: Files
) -> None:
    """A request in the packet that ends the handshake, and bodies larger than a buffer."""
    with api(settings, redis_url, files) as (server, url, client):
        address = urlsplit(url)
        assert address.hostname
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = files.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with socket.create_connection((address.hostname, address.port), 30) as connection:
            while True:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    connection.sendall(outgoing.read())
                    incoming.write(connection.recv(65_536))
                else:
                    break
            tls.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            connection.sendall(outgoing.read())  # with the client's last words of the handshake
            answer = b""
            while not answer:
                incoming.write(connection.recv(65_536))
                try:
                    answer = tls.read(4_096)
                except ssl.SSLWantReadError:
                    continue
            assert answer.startswith(b"HTTP/1.1 200")
        large = {"model": "none", "prompt": "a" * 2_000_000}
        for _ in range(20):
            assert client.post("/generate", json=large).status_code in (404, 422)
        wait_until(lambda: not server.server_state.connections, "no client is connected")


def test_old_protocols_are_refused(settings: ServeSettings, redis_url: str, files: Files) -> None:
    context = files.client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with api(settings, redis_url, files) as (_, url, _):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with connected(url) as plain, context.wrap_socket(plain, server_hostname="localhost") as us:
            assert us.version() == "TLSv1.2"
        with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with connected(url) as plain, pytest.raises(OSError, match=r"SSL|reset"):
            context.wrap_socket(plain, server_hostname="localhost")


def test_open_handshakes_do_not_delay_the_end(
    settings: ServeSettings, redis_url: str, files: Files
) -> None:
    with ExitStack() as stack:
        with api(settings, redis_url, files) as (server, url, _):
            waiting = [stack.enter_context(connected(url, RECORD)) for _ in range(3)]
            wait_until(lambda: len(server.server_state.connections) == 3, "all are connected")
        assert all(ended(connection) for connection in waiting)
