"""Liveness, readiness, metrics and versions of the process, and its state for people."""

import time
from importlib.metadata import version
from typing import Any, Literal

import torch
from fastapi import APIRouter, Request, Response
from prometheus_client import exposition
from pydantic import BaseModel, Field

from app.api.deps import ServicesDep
from app.api.schemas.bodies import kind, view_of
from app.api.schemas.generate import HealthView, ReadyView, ServerView, VersionView
from app.engine.engine import EngineStats
from pruning.jobs.job import JobStatus
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.stats import JobStatsReader
from pruning.models.memory import free_bytes

router = APIRouter(tags=["health"])
metrics_router = APIRouter(tags=["health"])  # left out if metrics have a port of their own


class EngineStatusView(BaseModel):
    """The requests of this process after the latest step."""

    num_running: int = Field(description="Requests that generate.")
    num_waiting: int = Field(description="Requests that wait for others to end.")
    kv_cache_usage: float = Field(
        description="0 to 1: share of all pages of keys and values that running sequences have."
    )
    num_prefix_queries: int = Field(
        description="Tokens of prompts that looked for keys and values, since the start."
    )
    num_prefix_hits: int = Field(description="Those whose keys and values were there.")
    num_preemptions: int = Field(
        description="How often a running request left its pages to others, since the start."
    )


class MemoryStatusView(BaseModel):
    """The memory of this process, on the device that generates."""

    device: str = Field(description="Where models are loaded, as `cpu` or `cuda`.")
    free_bytes: int = Field(description="What this process can still allocate on the device.")
    weight_bytes: int = Field(description="Of all loaded weights.")
    max_weight_bytes: int | None = Field(
        description="Limit of weight_bytes by SLEB_MAX_WEIGHT_BYTES; null: the free memory."
    )


class JobStatusView(BaseModel):
    """Jobs and workers of all processes that share the job store."""

    num_workers: int = Field(description="Workers that are alive.")
    queue_age_s: float = Field(
        description="How long the first of the queued jobs has been waiting; 0 without any."
    )
    num_jobs: dict[JobStatus, int] = Field(description="Number of jobs in each status.")


class StatusView(BaseModel):
    """The state of the service at one moment."""

    object: Literal["status"] = kind("status")
    status: Literal["ready", "not ready"] = Field(description="Whether the service takes requests.")
    detail: str | None = Field(description="Why it is not ready.")
    at: float = Field(description="The time of this response.")
    engine: EngineStatusView = Field(description="Requests of this process.")
    memory: MemoryStatusView = Field(description="Memory of this process.")
    jobs: JobStatusView | None = Field(description="Null if the job store does not answer.")


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
    are still served. A missing worker does not change it either: jobs wait, and models are served.
    """
    engine, vllm = services.generation.engine, services.generation.vllm
    states = {} if vllm is None else vllm.states()
    servers = {name: view_of(ServerView, state) for name, state in states.items()}
    reason = services.readiness.reason or engine.fault
    if reason is not None:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    status = "ready" if reason is None else "not ready"
    return ReadyView(
        status=status,
        detail=reason,
        kernels=engine.kernels_state,
        num_workers=services.jobs.stats.last_num_workers,
        vllm=servers,
    )


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


@metrics_router.get("/metrics", response_class=Response, responses=_METRICS)
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


@router.get("/status")
def get_status(services: ServicesDep) -> StatusView:
    """Whether the service is ready, what its engine and its memory hold, and who works on jobs."""
    engine, registry = services.generation.engine, services.generation.registry
    reason = services.readiness.reason or engine.fault
    return StatusView(
        status="ready" if reason is None else "not ready",
        detail=reason,
        at=time.time(),
        engine=_engine(engine.stats()),
        memory=MemoryStatusView(
            device=registry.device,
            free_bytes=free_bytes(torch.device(registry.device)),
            weight_bytes=sum(registry.weight_bytes().values()),
            max_weight_bytes=services.settings.max_weight_bytes,
        ),
        jobs=_jobs(services.jobs.stats),
    )


def _engine(stats: EngineStats) -> EngineStatusView:
    counts = stats.cache_counts.values()
    return view_of(
        EngineStatusView,
        stats,
        num_prefix_queries=sum(each.num_queries for each in counts),
        num_prefix_hits=sum(each.num_hits for each in counts),
        num_preemptions=sum(each.num_preemptions for each in counts),
    )


def _jobs(reader: JobStatsReader) -> JobStatusView | None:
    try:
        return view_of(JobStatusView, reader.read())
    except JobStoreUnavailable:
        return None
