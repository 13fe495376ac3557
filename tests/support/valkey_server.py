"""A real Valkey with options of the test's own, on a socket in a directory of its own."""

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import redis

from app.server.valkey import server_binary
from tests.support.waiting import wait_until


@contextmanager
def valkey(*options: str) -> Iterator[str]:
    """Yield its URL."""
    with running_valkey(*options) as server:
        yield server.url


@contextmanager
def running_valkey(*options: str) -> Iterator["ValkeyServer"]:
    """In a directory with a short name, as sockets must have one."""
    with TemporaryDirectory(prefix="sleb-valkey-") as directory:
        server = ValkeyServer(Path(directory), *options)
        with server.start():
            try:
                server.wait_until_it_answers()
                yield server
            finally:
                server.process.terminate()


class ValkeyServer:
    """One that can be started again over what it has written; ``directory`` has a short name."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._socket = directory / "s"
        self._command = [str(server_binary()), "--port", "0", "--dir", str(directory)]
        self._command += ["--unixsocket", str(self._socket), *options]
        self.url = f"unix://{self._socket}"
        self.process: subprocess.Popen[bytes]

    def start(self) -> "subprocess.Popen[bytes]":
        # Python ignores SIGXFSZ, and must hand that on: see fill_disk
        self.process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, restore_signals=False
        )
        return self.process

    def fill_disk(self) -> None:
        """Let its files grow no further, as on a full disk: it refuses the write after the next."""
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))

    def free_disk(self) -> None:
        unlimited = resource.RLIM_INFINITY, resource.RLIM_INFINITY
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, unlimited)

    def wait_until_it_answers(self) -> None:
        wait_until(lambda: _answers(self._socket), "Valkey answers")


def _answers(socket: Path) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(socket)) as client:
            return bool(client.ping())
    except redis.AuthenticationError:
        return True
    except redis.ConnectionError:
        return False
