"""``sleb up``: the embedded Valkey, one worker and the API, started and stopped together.

Each of the three is started again if it dies, and the others go on meanwhile.
"""

import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from rich.console import Console

from app.auth.scopes import check_address
from app.child_command import command_of
from app.config import ServeSettings
from app.server.child import Child, Command
from app.server.valkey import redis_url
from pruning.config import child_environment
from pruning.jobs.redis import JobStoreUnavailable, connect
from pruning.jobs.workers import Workers
from pruning.logs import set_up_logging
from pruning.process import deferred_signal

GRACE_S = 15.0  # after its drain, a child that is still alive is killed
_POLL_S = 0.2
_STORE_TIMEOUT_S = 1.0


def run_up(settings: ServeSettings) -> None:
    """Run until SIGTERM or Ctrl-C.

    Raises ``UnprotectedAddress``, and ``ChildEnded`` if the worker or the API cannot start.
    """
    check_address(settings)
    set_up_logging(settings.log_level, settings.log_format)
    console = Console(stderr=True, highlight=False)
    console.print("starting Valkey, a worker and the API; press Ctrl-C to stop them")
    with (
        redis_url(settings) as url,
        deferred_signal(signal.SIGTERM) as is_ended,
        deferred_signal(signal.SIGINT) as is_interrupted,
        closing(connect(url, num_retries=0, timeout_s=_STORE_TIMEOUT_S)) as client,
        _stopped_at_the_end(
            [_worker(settings, Workers(client)), _api(settings, console)]
        ) as children,
    ):
        pause = threading.Event()
        while not (is_ended() or is_interrupted()):
            for child in children:
                child.look()
            pause.wait(_POLL_S)


def _worker(settings: ServeSettings, workers: Workers) -> Child:
    """Readers of the job store would take a dead worker for a living one until its lease ends."""

    def is_registered(pid: int) -> bool:
        with suppress(JobStoreUnavailable):
            return workers.has_registered(pid)
        return False

    def forget(pid: int) -> None:
        with suppress(JobStoreUnavailable):
            workers.forget(pid)

    line, environment = command_of("worker"), child_environment(settings)
    return Child(Command("worker", line, environment, GRACE_S, is_registered, forget))


def _api(settings: ServeSettings, console: Console) -> Child:
    def answers(_pid: int) -> bool:
        """Print the addresses and what to do next, once the API answers."""
        try:
            with socket.create_connection(("localhost", settings.port), timeout=_POLL_S):
                pass
        except OSError:
            return False
        _print_addresses(settings, console)
        return True

    line, environment = command_of("serve"), child_environment(settings)
    return Child(Command("API", line, environment, settings.drain_s + GRACE_S, answers))


def _print_addresses(settings: ServeSettings, console: Console) -> None:
    scheme = "http" if settings.tls_cert is None else "https"
    url = f"{scheme}://localhost:{settings.port}"
    console.print(
        f"web page {url}/ui, REST API {url}/docs, OpenAI API {url}/v1\nnext: open the "
        "web page, or run `sleb jobs submit MODEL --num-remove 6 --watch`; `sleb "
        "models` lists the models",
        markup=False,
        soft_wrap=True,
    )


@contextmanager
def _stopped_at_the_end(children: Sequence[Child]) -> Iterator[Sequence[Child]]:
    """Stop the last one first: the API is drained before the worker ends."""
    try:
        yield children
    finally:
        for child in reversed(children):
            child.stop()
