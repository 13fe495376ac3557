"""Liveness, readiness, metrics and versions of the process."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from prometheus_client import exposition

from app.api.deps import ServicesDep
from app.api.formats.same_names import view_of
from app.api.schemas.generate import HealthView, ReadyView, ServerView, VersionView

router = APIRouter(tags=["health"])

# The asynchronous ones answer from the event loop: a thread would wait for every large body.


@router.get("/health/live", responses={503: {"model": HealthView}})
async def live(services: ServicesDep, response: Response) -> HealthView:
    """503 if the thread of the engine has died or is stuck in a step: restart the process.

    While the process shuts down, it is alive: its engine ends before it does.
    """
    fault = services.generation.engine.fault
    if services.readiness.reason not in ("starting", "draining") and fault is not None:
        response.status_code = 503
        return HealthView(status="dead", detail=fault)
    return HealthView(status="alive")


@router.get("/health/ready", responses={503: {"model": ReadyView}})
async def ready(services: ServicesDep, response: Response) -> ReadyView:
    """503 while models are loading and while the process shuts down.

    A vLLM server that has failed is named in the body and does not change the status: other models
    are still served.
    """
    engine, vllm = services.generation.engine, services.generation.vllm
    states = {} if vllm is None else vllm.states()
    servers = {name: view_of(ServerView, state) for name, state in states.items()}
    reason = services.readiness.reason or engine.fault
    if reason is not None:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
        return ReadyView(
            status="not ready", detail=reason, kernels=engine.kernels_state, vllm=servers
        )
    return ReadyView(status="ready", kernels=engine.kernels_state, vllm=servers)


@router.get("/health/generate", responses={503: {"model": HealthView}})
async def generates(services: ServicesDep, response: Response) -> HealthView:
    """Generate one token with a loaded model: 503 if none comes within ten seconds.

    Without a loaded model, it succeeds once the process is ready.
    """
    reason = services.readiness.reason or await services.generation.token_check.failure()
    if reason is not None:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
        return HealthView(status="not generating", detail=reason)
    return HealthView(status="generating")


_FORMATS = ("text/plain", "application/openmetrics-text")
_METRICS: dict[int | str, dict[str, Any]] = {
    200: {"content": {name: {"schema": {"type": "string"}} for name in _FORMATS}}
}


@router.get("/metrics", response_class=Response, responses=_METRICS)
def metrics(services: ServicesDep, request: Request) -> Response:
    """Return metrics in Prometheus' text format, or in OpenMetrics if the scraper accepts it."""
    try:
        encode, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # it compares versions that are no numbers
        encode, content_type = exposition.choose_encoder("")
    return Response(encode(services.metrics.registry), media_type=content_type)


@router.get("/version")
def versions() -> VersionView:
    return VersionView(
        sleb_serve=version("sleb-serve"),
        torch=version("torch"),
        transformers=version("transformers"),
    )
