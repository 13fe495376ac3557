"""Where the processes of one machine listen: not two of them on one port."""

from app.config import ServeSettings
from pruning.config import WorkerSettings


class PortTaken(ValueError):
    """Two processes of one machine are to listen on one port."""


def check_ports(api: ServeSettings, worker: WorkerSettings) -> None:
    """Of an API and a worker on one machine. Raises ``PortTaken``."""
    if api.port and api.port == worker.worker_metrics_port:
        raise PortTaken(
            f"SLEB_PORT and SLEB_WORKER_METRICS_PORT are both {api.port}: the API and the "
            "worker's metrics need a port each"
        )
