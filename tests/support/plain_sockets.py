"""Requests sent byte by byte, as slow clients send them."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

HALF_HEAD = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: appl"
BODY = json.dumps({"model": "none", "prompt": "a"}).encode()
HEAD = (
    b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
)
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
MODELS = b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextmanager
def connected(url: str, *parts: bytes, source: str = "127.0.0.1") -> Iterator[socket.socket]:
    """A connection from the address ``source``."""
    to = urlsplit(url)
    with socket.create_connection((to.hostname, to.port), 30, (source, 0)) as connection:
        for part in parts:
            connection.sendall(part)
        yield connection


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(4_096).split(b" ", 2)[1])


def answer_to(url: str, request: bytes) -> int:
    with connected(url, request) as connection:
        return status_of(connection)
