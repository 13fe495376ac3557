"""``sleb cluster``: run the service on Ray Serve until SIGTERM or Ctrl-C."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from app.auth.scopes import check_address
from app.config import ClusterSettings
from app.server.serve import leave, set_up_process
from pruning.search.ray_scoring import connected, import_ray

if TYPE_CHECKING:
    from ray.serve.schema import ServeStatus

logger = logging.getLogger(__name__)


class ClusterFailed(RuntimeError):
    """The replicas cannot be started."""


def run_cluster(settings: ClusterSettings) -> None:
    """Run on the cluster that Ray finds, or else on one that runs on this machine meanwhile.

    Raises ``ClusterUnavailable`` without the extra, ``UnprotectedAddress`` or ``ClusterFailed``,
    and what ``check_cluster`` raises.
    """
    check_address(settings)
    set_up_process(settings)
    with suppress(KeyboardInterrupt), connected(import_ray("serve")):
        signal.signal(signal.SIGTERM, leave)  # Ray's handler would skip the cleanup
        with deployed(settings) as url:
            logger.info("the cluster is available at %s", url)
            threading.Event().wait()


@contextmanager
def deployed(settings: ClusterSettings) -> Iterator[str]:
    """Deploy on the connected cluster and yield the URL. Raises as ``run_cluster`` does."""
    from ray import serve

    from app.cluster.application import NAME, application_of

    application = application_of(settings)
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": str(settings.host), "port": settings.port},
    )
    try:
        serve.run(application, name=NAME, route_prefix="/")
        yield f"http://{settings.host}:{settings.port}"
    except RuntimeError as error:
        raise ClusterFailed(_reasons(serve.status(), NAME) or str(error)) from error
    finally:
        serve.delete(NAME)


def _reasons(status: "ServeStatus", name: str) -> str:
    """The last line of each deployment's message: the error that a traceback ends with."""
    messages = [deployment.message for deployment in status.applications[name].deployments.values()]
    return "\n".join(message.splitlines()[-1] for message in messages if message)
