"""The processes that work on one data directory."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import httpx2
import psutil

from tests.support.waiting import LIMIT_S, wait_until


def environment(data_dir: Path, threads: int = 1) -> dict[str, str]:
    """Of a process for this directory; one thread, as several slow a tiny model down."""
    ours = {"SLEB_DATA_DIR": str(data_dir), "SLEB_VERIFY": "process", "COLUMNS": "100"}
    return {**os.environ, "SLEB_THREADS": str(threads), "SLEB_SANDBOX": "off", **ours}


@contextmanager
def running(
    command: Sequence[str], env: Mapping[str, str], **options: Any
) -> Iterator["subprocess.Popen[Any]"]:
    """A process with that command line; it is killed at the end, if it still runs."""
    with subprocess.Popen(command, env=env, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def free_port() -> int:
    """Below those that the system gives to clients: one of them could take it before the server."""
    for port in _ports():
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("all ports are taken")


@cache
def _ports() -> Iterator[int]:
    """Each of them once in this process, in another order than in others."""
    return iter(Random(os.getpid()).sample(range(15_000, 32_000), 17_000))


def processes_of(data_dir: Path) -> list[str]:
    """Command lines of everything alive that was started for this directory or one in it."""
    found = []
    for process in psutil.process_iter():
        try:
            # Valkey writes over its environment, but works in the data directory.
            places = (process.environ().get("SLEB_DATA_DIR", "/"), process.cwd())
            is_ours = any(Path(place).is_relative_to(data_dir) for place in places)
            if process.status() != psutil.STATUS_ZOMBIE and is_ours:
                found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs. One that has ended may be there until its parent has seen it."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def is_ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/health/ready").status_code == 200
    except httpx2.TransportError:
        return False


@contextmanager
def serve_process(
    data_dir: Path, **settings: str
) -> Iterator[tuple["subprocess.Popen[bytes]", httpx2.Client]]:
    """``sleb serve`` with a Valkey of its own."""
    port = free_port()
    variables = {f"SLEB_{name.upper()}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "app", "serve", "--port", str(port)]
    with (
        running(command, {**environment(data_dir), **variables}) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        wait_until(lambda: is_ready(client), "the API is ready")
        yield process, client


@contextmanager
def sleb_up(data_dir: Path) -> Iterator[str]:
    """The URL of ``sleb up``: the embedded Valkey, a worker and the API."""
    port = free_port()
    env = {**environment(data_dir), "SLEB_PORT": str(port), "SLEB_VERIFY": "inline"}
    with (
        running([sys.executable, "-m", "app", "up"], env) as up,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        wait_until(lambda: is_ready(client), "the service is ready", 300)
        yield f"http://127.0.0.1:{port}"
        up.terminate()
        up.wait(LIMIT_S)
