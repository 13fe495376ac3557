"""Requests on a bare connection, which a test may close before it has read the response."""

import json
import socket
from typing import Any

LONG = 200  # tokens: such a request still runs when its client leaves


def send(
    url: str, path: str, body: dict[str, Any], common: dict[str, Any] | None = None
) -> socket.socket:
    """The request on a bare connection; the response is not read."""
    host, port = url.removeprefix("http://").split(":")
    common = {"model": "tiny", "ignore_eos": True} if common is None else common
    content = json.dumps({**common, **body})
    connection = socket.create_connection((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n{content}".encode())
    return connection
