"""TLS in front of a Redis or Valkey on a socket: the embedded one is built without it."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import trustme


@contextmanager
def tls_in_front_of(url: str, ca_file: Path) -> Iterator[str]:
    """Yield the ``rediss://`` address of this ``unix://`` URL; ``ca_file`` gets the CA to trust."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("localhost").configure_cert(context)
    target = unquote(urlsplit(url).path)
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as opened:
        thread = threading.Thread(target=_accept, args=(listener, context, target, opened))
        thread.start()
        try:
            yield f"rediss://localhost:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(
    listener: socket.socket, context: ssl.SSLContext, target: str, opened: ExitStack
) -> None:
    with suppress(OSError):  # the listener is shut down
        while True:
            plain, _ = listener.accept()
            opened.enter_context(plain)
            client: socket.socket = plain
            try:
                client = opened.enter_context(context.wrap_socket(plain, server_side=True))
            except OSError:  # a client that does not trust the CA
                continue
            server = opened.enter_context(socket.socket(socket.AF_UNIX))
            server.connect(target)
            for pair in ((client, server), (server, client)):
                pump = threading.Thread(target=_pump, args=pair)
                pump.start()
                opened.callback(pump.join)
            opened.callback(_end, client, server)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)
    _end(source, sink)


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
