"""Slow clients are cut, and health is answered whatever number of connections is open."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from app.config import ServeSettings
from app.server import connections
from app.server.connections import ConnectionLimits, GuardedProtocol
from app.server.serve import ApiServer
from tests.support.plain_sockets import (
    BODY,
    HALF_HEAD,
    HEAD,
    LIVE,
    MODELS,
    answer_to,
    connected,
    status_of,
)
from tests.support.processes import environment, free_port, is_ready, running
from tests.support.serving import serving
from tests.support.waiting import wait_until


@pytest.fixture
def api(
    settings: ServeSettings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[ApiServer, str]]:
    for name in ("HEADERS_S", "BODY_S", "WRITE_S"):
        monkeypatch.setattr(connections, name, 0.3)
    with serving(settings, redis_url) as (server, url):
        wait_until(lambda: httpx2.get(f"{url}/health/ready").is_success, "the API is ready")
        wait_until(lambda: not server.server_state.connections, "no client is connected")
        yield server, url


@pytest.mark.parametrize("parts", [(), (HALF_HEAD,), (HEAD, BODY[:5])])
def test_a_client_that_sends_no_more_is_cut(
    api: tuple[ApiServer, str], parts: tuple[bytes, ...]
) -> None:
    server, url = api
    with connected(url, *parts) as connection:
        assert status_of(connection) == 408
        assert connection.recv(1) == b""
    wait_until(lambda: not server.server_state.connections, "no client is connected")
    wait_until(lambda: not server.server_state.tasks, "no request is in work")


def test_a_client_is_cut_in_its_second_request_too(api: tuple[ApiServer, str]) -> None:
    with connected(api[1], LIVE) as connection:
        assert status_of(connection) == 200
        connection.sendall(HALF_HEAD)
        while connection.recv(4_096):
            pass


def test_a_body_that_comes_steadily_has_more_time(
    api: tuple[ApiServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "BYTES_PER_S", 1)
    with connected(api[1], HEAD, BODY[:20]) as steady:
        assert answer_to(api[1], HEAD) == 408  # as long as the steady one would have
        steady.sendall(BODY[20:])
        assert status_of(steady) == 404


def test_a_client_that_reads_nothing_is_cut(api: tuple[ApiServer, str]) -> None:
    server, url = api
    address = urlsplit(url)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect((address.hostname, address.port))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 40)
        wait_until(lambda: server.server_state.connections, "the client is connected")
        wait_until(lambda: not server.server_state.connections, "the client is cut")


@contextmanager
def limited(settings: ServeSettings, redis_url: str, limits: ConnectionLimits) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.serving.limits_of", lambda _number: limits)
        with serving(settings, redis_url) as (server, url):
            wait_until(lambda: httpx2.get(f"{url}/health/ready").is_success, "the API is ready")
            wait_until(lambda: not server.server_state.connections, "no client is connected")
            yield url


def test_beyond_the_limit_only_health_is_answered(settings: ServeSettings, redis_url: str) -> None:
    with limited(settings, redis_url, ConnectionLimits(4, 2)) as url:
        with connected(url, HALF_HEAD), connected(url, HEAD):
            wait_until(lambda: answer_to(url, MODELS) == 503, "the connections are counted")
            assert answer_to(url, LIVE) == 200
            refused = httpx2.get(f"{url}/models")
            assert refused.json()["type"] == "too-many-connections"
            assert refused.headers["connection"] == "close"
        wait_until(lambda: answer_to(url, MODELS) == 200, "the connections are closed")


def test_more_idle_connections_than_are_reserved_do_not_lock_health_out(
    settings: ServeSettings, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "NUM_RESERVED", 4)
    with limited(settings, redis_url, ConnectionLimits(2)) as url, ExitStack() as stack:
        for _ in range(30):
            stack.enter_context(connected(url, HALF_HEAD))
        for _ in range(5):
            assert answer_to(url, LIVE) == 200


def test_an_address_leaves_connections_to_others() -> None:
    limits, kept = ConnectionLimits(10), []
    for number in range(8):
        kept.append(GuardedProtocol.__new__(GuardedProtocol))
        assert limits.admit(kept[-1], "10.0.0.1") == (number < 5)
    others = [GuardedProtocol.__new__(GuardedProtocol) for _ in range(6)]
    assert [limits.admit(each, f"10.0.1.{n}") for n, each in enumerate(others)] == [True] * 5 + [
        False
    ]
    for each in kept:
        limits.forget(each, "10.0.0.1")
    assert limits.admit(kept[0], "10.0.0.1")


@pytest.mark.slow
def test_half_bodies_do_not_use_up_the_files_of_a_process(data_dir: Path) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ["bash", "-c", f"ulimit -n 256; exec {sys.executable} -m app serve --port {port}"]
    with (
        running(command, environment(data_dir)) as process,
        httpx2.Client(base_url=url) as client,
        ExitStack() as stack,
    ):
        wait_until(lambda: is_ready(client), "the API is ready")
        client.close()
        for _ in range(400):
            stack.enter_context(connected(url, HEAD, BODY[:5]))
        for _ in range(20):
            assert answer_to(url, LIVE) == 200
        process.terminate()
        process.wait(100)


def test_health_is_answered_before_hundreds_of_requests_that_were_sent_earlier(
    api: tuple[ApiServer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them arrive while the event loop is busy, so they are there in one turn of it."""
    server, url = api
    answered: list[str] = []
    on_response = GuardedProtocol.on_response_complete

    def note(connection: GuardedProtocol) -> None:
        answered.append(connection.scope["path"])
        on_response(connection)

    monkeypatch.setattr(GuardedProtocol, "on_response_complete", note)
    go_on = threading.Event()
    server.servers[0].get_loop().call_soon_threadsafe(go_on.wait)
    with ExitStack() as stack:
        try:
            others = [
                stack.enter_context(connected(url, MODELS, source="127.0.0.2")) for _ in range(300)
            ]
            probe = stack.enter_context(connected(url, LIVE))
        finally:
            go_on.set()
        assert {status_of(each) for each in (probe, *others)} == {200}
    wait_until(lambda: len(answered) == 301, "all are answered")
    assert answered.index("/health/live") < 30
