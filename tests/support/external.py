"""Servers of external models: declared in a file, and one that answers whatever a test wants."""

import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KEY = "sk-a-secret"


def declare(data_dir: Path, name: str, base_url: str, **fields: Any) -> None:
    """One more model in the file of this data directory."""
    declared = {"name": name, "base_url": base_url, **fields}
    lines = [f"{key} = {json.dumps(value)}" for key, value in declared.items()]
    with (data_dir / "external.toml").open("a", encoding="utf-8") as file:
        file.write("\n".join(["[[models]]", *lines, ""]))


@dataclass(frozen=True)
class Asked:
    path: str
    headers: dict[str, str]  # names in lower case
    body: dict[str, Any]


Behaviour = Callable[[socket.socket, threading.Event], None]


@dataclass
class FakeServer:
    """Reads a request, and leaves its connection to ``behave``; ``over`` is set at the end."""

    behave: Behaviour
    port: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    asked: list[Asked] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def says(*parts: bytes) -> Behaviour:
    """These bytes, and the end of the connection."""

    def behave(connection: socket.socket, _over: threading.Event) -> None:
        for part in parts:
            connection.sendall(part)

    return behave


def says_and_is_silent(*parts: bytes) -> Behaviour:
    def behave(connection: socket.socket, over: threading.Event) -> None:
        says(*parts)(connection, over)
        over.wait()

    return behave


def says_and_resets(*parts: bytes) -> Behaviour:
    def behave(connection: socket.socket, over: threading.Event) -> None:
        says(*parts)(connection, over)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    return behave


def head(status: int = 200, content_type: str = "text/event-stream", extra: str = "") -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Type: {content_type}", "Connection: close"]
    return "\r\n".join([*lines, *([extra] if extra else []), "", ""]).encode()


def event(data: object) -> bytes:
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def text(text_: str, finish_reason: str | None = None, **more: Any) -> bytes:
    """A chunk of a completion."""
    choice = {"index": 0, "text": text_, "finish_reason": finish_reason, **more}
    return event({"object": "text_completion", "choices": [choice], "usage": None})


def usage(num_prompt: int, num_generated: int) -> bytes:
    told = {"prompt_tokens": num_prompt, "completion_tokens": num_generated}
    return event({"choices": [], "usage": {**told, "total_tokens": num_prompt + num_generated}})


DONE = event("[DONE]")
GOOD = (head(), text("a b"), text(" c", "length"), usage(5, 3), DONE)


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """Well-behaved until it is told otherwise."""
    fake = FakeServer(says(*GOOD))

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            _method, path, _version = self.rfile.readline().decode().split()
            headers = dict(self._headers())
            body = self.rfile.read(int(headers["content-length"]))
            fake.asked.append(Asked(path, headers, json.loads(body)))
            with suppress(ConnectionError):  # the client may be gone
                fake.behave(self.connection, fake.over)

        def _headers(self) -> Iterator[tuple[str, str]]:
            while line := self.rfile.readline().decode().strip():
                name, _, value = line.partition(":")
                yield name.lower(), value.strip()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 128

    with Server(("127.0.0.1", 0), Handler) as server:
        fake.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield fake
        finally:
            fake.over.set()
            server.shutdown()
            thread.join()
