"""``sleb cluster``: the service on Ray Serve, until SIGTERM or Ctrl-C."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from app.auth.scopes import check_door
from app.config import ClusterSettings
from app.server.serve import leave, set_up_process
from pruning.search.ray_scoring import connected, import_ray

if TYPE_CHECKING:
    from ray.serve.schema import ServeStatus

logger = logging.getLogger(__name__)


class ClusterFailed(RuntimeError):
    """The replicas cannot be started."""


def run_cluster(settings: ClusterSettings) -> None:
    """On the cluster that Ray finds, or on one that is started on this machine and ends with it.

    Raises ``ClusterUnavailable`` without the extra, ``OpenDoor``, ``NoCommonRedis``, or
    ``ClusterFailed``.
    """
    check_door(settings)
    set_up_process(settings)
    with suppress(KeyboardInterrupt), connected(import_ray("serve")):
        signal.signal(signal.SIGTERM, leave)  # Ray's own leaves everything as it is
        with deployed(settings) as url:
            logger.info("the cluster answers on %s", url)
            threading.Event().wait()


def _why(status: "ServeStatus", name: str) -> str:
    """The last line of every complaint: the error behind a traceback. Empty if there is none."""
    complaints = [its.message for its in status.applications[name].deployments.values()]
    return "\n".join(complaint.splitlines()[-1] for complaint in complaints if complaint)


@contextmanager
def deployed(settings: ClusterSettings) -> Iterator[str]:
    """On the cluster that is connected to; yields the URL. Raises as ``run_cluster`` does."""
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
        raise ClusterFailed(_why(serve.status(), NAME) or str(error)) from error
    finally:
        serve.delete(NAME)
