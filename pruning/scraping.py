"""A port of its own for the metrics of a process."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server


class MetricsPortUnavailable(RuntimeError):
    """The process cannot listen on the port of its metrics."""


@contextmanager
def metrics_served(
    registry: CollectorRegistry, host: str, port: int, setting: str
) -> Iterator[None]:
    """Serve ``/metrics`` on ``port``, which ``setting`` names, unless it is 0.

    Raises ``MetricsPortUnavailable``.
    """
    if port == 0:
        yield
        return
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise MetricsPortUnavailable(
            f"cannot serve metrics on port {port} of {host} ({error}): set {setting} to another "
            "port, or to 0 to disable it"
        ) from error
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
