"""Accepts connections in place of asyncio, which sets up all that wait before it reads from any.

Here each is set up when it is the turn of its address, so a client that opens a thousand at once
does not delay others.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial

from app.server.fair_queue import FairQueue

logger = logging.getLogger(__name__)

_PER_TURN = 1  # connection: one that waits behind a thousand is begun in its second turn
_PAUSE_S = 1.0  # where this process may open no other file


class Acceptor:
    """Accepts on sockets that a server of asyncio listens on."""

    def __init__(self, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._protocol = protocol
        self._loop = asyncio.get_running_loop()
        self._queue = FairQueue(_PER_TURN)
        self._listeners: list[socket.socket] = []
        self._beginning: set[asyncio.Task[None]] = set()

    def take_over(self, listening: socket.socket) -> None:
        """Accept in place of the loop. A socket of asyncio has no method to accept: a copy has."""
        self._loop.remove_reader(listening)
        # known as TCP: asyncio then leaves out Nagle's algorithm
        listener = socket.socket(
            listening.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, listening.dup().detach()
        )
        listener.setblocking(False)
        self._listeners.append(listener)
        self._listen(listener)

    def close(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    def _listen(self, listener: socket.socket) -> None:
        if listener in self._listeners:  # and not closed in a pause
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Accept all that wait."""
        try:
            while True:
                connection, (address, *_) = listener.accept()
                connection.setblocking(False)
                self._queue.add(address, partial(self._begin, connection))
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.warning("no connection is accepted for %g s: %s", _PAUSE_S, error)
            self._loop.remove_reader(listener)
            self._loop.call_later(_PAUSE_S, self._listen, listener)

    def _begin(self, connection: socket.socket) -> None:
        beginning = self._loop.create_task(self._connect(connection))
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)

    async def _connect(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError as error:  # the client has left
            logger.debug("a connection was not set up: %s", error)
            connection.close()
