"""``sleb up``: the embedded Valkey, one worker and the API, started and stopped together."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from rich.console import Console

from app.auth.scopes import check_address
from app.config import ServeSettings
from app.server.valkey import redis_url
from pruning.config import child_environment
from pruning.process import deferred_signal, end_with_parent

GRACE_S = 15.0  # after its drain, a child that is still alive is killed


class ChildEnded(RuntimeError):
    """A process ended unexpectedly, so the others were stopped."""


def run_up(settings: ServeSettings) -> None:
    """Run until SIGTERM, Ctrl-C or the end of any child.

    Raises ``ChildEnded`` or ``UnprotectedAddress``.
    """
    check_address(settings)
    console = Console(stderr=True, highlight=False)
    console.print("starting Valkey, a worker and the API; press Ctrl-C to stop them")
    with (
        redis_url(settings),
        deferred_signal(signal.SIGTERM) as is_ended,
        deferred_signal(signal.SIGINT) as is_interrupted,
    ):
        environment = child_environment(settings)  # each child holds the embedded Valkey itself
        with (
            _child("worker", environment, GRACE_S) as worker,
            _child("serve", environment, settings.drain_s + GRACE_S) as api,
        ):
            look = partial(_say_once_ready, settings, console)
            _watch([worker, api], lambda: is_ended() or is_interrupted(), look)


def _watch(
    children: Sequence["subprocess.Popen[bytes]"],
    is_stopped: Callable[[], bool],
    look: Callable[[], bool],
) -> None:
    """Until it is stopped. ``look`` is called until it returns true. Raises ``ChildEnded``."""
    is_ready, pause = False, threading.Event()
    while not pause.wait(0.2) and not is_stopped():
        is_ready = is_ready or look()
        for child in children:
            if (code := child.poll()) is not None:
                raise ChildEnded(f"a process exited with code {code}: see its output above")


def _say_once_ready(settings: ServeSettings, console: Console) -> bool:
    """Print the addresses and what to do next, if the API answers."""
    scheme = "http" if settings.tls_cert is None else "https"
    try:
        with socket.create_connection(("localhost", settings.port), timeout=0.2):
            pass
    except OSError:
        return False
    url = f"{scheme}://localhost:{settings.port}"
    console.print(
        f"web page {url}/ui, REST API {url}/docs, OpenAI API {url}/v1\nnext: open the "
        "web page, or run `sleb jobs submit MODEL --num-remove 6 --watch`; `sleb "
        "models` lists the models",
        markup=False,
        soft_wrap=True,
    )
    return True


@contextmanager
def _child(
    command: str, environment: dict[str, str], timeout_s: float
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a command in its own session, so that only this process passes Ctrl-C on to it."""
    child = subprocess.Popen(  # noqa: S603 - an own command
        [sys.executable, "-m", "app", command],
        env=environment,
        start_new_session=True,
        preexec_fn=partial(end_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - no threads here
    )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
