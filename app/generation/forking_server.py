"""A process that works in forks, and answers requests as soon as their forks have.

It reads framed JSON from its standard input and writes framed JSON to its standard output.
"""

import json
import selectors
import signal
import sys
from abc import ABC, abstractmethod
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from pruning.process import be_killed_first, end_with_parent

_Fork = TypeVar("_Fork")


class ForkingServer(ABC, Generic[_Fork]):
    """Answers until its requests end. ``_Fork`` is what is known of a fork."""

    def __init__(self, requests: Connection, answers: Connection) -> None:
        self._requests = requests
        self._answers = answers
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        self._selector.register(self._requests, selectors.EVENT_READ)
        with suppress(EOFError):
            while True:
                for key, _ in self._selector.select():
                    if key.data is None:
                        self.take(json.loads(self._requests.recv_bytes()))
                    else:
                        self.receive(key.data)

    @abstractmethod
    def take(self, request: dict[str, Any]) -> None:
        """Answer the request, or give it to a fork."""

    @abstractmethod
    def receive(self, fork: _Fork) -> None:
        """Answer with what this fork has sent, or for a fork that has ended."""

    def watch(self, pipe: Connection, fork: _Fork) -> None:
        """Call ``receive`` with this fork when it sends something or ends."""
        self._selector.register(pipe, selectors.EVENT_READ, fork)

    def forget(self, pipe: Connection) -> None:
        self._selector.unregister(pipe)

    def answer(self, request_id: int, answer: dict[str, Any]) -> None:
        self._answers.send_bytes(json.dumps({"id": request_id, **answer}).encode())


def serve(server: type[ForkingServer[Any]], parent: str) -> None:
    """Run the server on standard input and output until the process ``parent`` ends."""
    end_with_parent(int(parent), signal.SIGKILL)
    be_killed_first()
    requests = Connection(sys.stdin.fileno(), writable=False)
    server(requests, Connection(sys.stdout.fileno(), readable=False)).run()
