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
    """Requests of this process after the latest step."""

    num_running: int = Field(description="Running requests.")
    num_waiting: int = Field(description="Waiting requests.")
    kv_cache_usage: float = Field(
        description="Fraction of the KV cache in use by running sequences, from 0 to 1."
    )
    num_prefix_queries: int = Field(
        description="Prompt tokens looked up in the prefix cache since the start."
    )
    num_prefix_hits: int = Field(
        description="Prompt tokens found in the prefix cache since the start."
    )
    num_preemptions: int = Field(description="Number of preemptions since the start.")


class MemoryStatusView(BaseModel):
    """Memory of this process on the generation device."""

    device: str = Field(description="Device of the models, e.g. `cpu` or `cuda`.")
    free_bytes: int = Field(
        description="Free memory that this process can still allocate on the device."
    )
    weight_bytes: int = Field(description="Memory of all loaded weights.")
    max_weight_bytes: int | None = Field(
        description="Limit of weight_bytes (SLEB_MAX_WEIGHT_BYTES); null if only free memory "
        "limits it."
    )


class JobStatusView(BaseModel):
    """Jobs and workers of all processes that share the job store."""

    num_workers: int = Field(description="Number of live workers.")
    queue_age_s: float = Field(
        description="Seconds that the first queued job has been waiting; 0 if the queue is empty."
    )
    num_jobs: dict[JobStatus, int] = Field(description="Number of jobs by status.")


class StatusView(BaseModel):
    """Current state of the service."""

    object: Literal["status"] = kind("status")
    status: Literal["ready", "not ready"] = Field(
        description="Whether the service accepts requests."
    )
    detail: str | None = Field(description="Why the service is not ready.")
    at: float = Field(description="Time of this response, in seconds since the epoch.")
    engine: EngineStatusView = Field(description="Requests of this process.")
    memory: MemoryStatusView = Field(description="Memory of this process.")
    jobs: JobStatusView | None = Field(
        description="Jobs and workers; null if the job store does not respond."
    )


# The asynchronous ones answer from the event loop: a thread would wait for every large body.


@router.get("/health/live", responses={503: {"model": HealthView}})
async def live(services: ServicesDep, response: Response) -> HealthView:
    """Check that the engine is running; 503 if its thread died or is stuck in a step. Restart the
    process then.

    A process that is shutting down is alive until it exits.
    """
    fault = services.generation.engine.fault
    if services.readiness.reason not in ("starting", "draining") and fault is not None:
        response.status_code = 503
        return HealthView(status="dead", detail=fault)
    return HealthView(status="alive")


@router.get("/health", name="health", responses={503: {"model": ReadyView}})
@router.get("/ping", name="ping", responses={503: {"model": ReadyView}})
@router.get("/health/ready", responses={503: {"model": ReadyView}})
async def ready(services: ServicesDep, response: Response) -> ReadyView:
    """Check that the service accepts requests; 503 while models are loading or the process is
    shutting down.

    A failed vLLM server is named in the body but does not change the status, because other models
    are still served. A missing worker does not change it either: jobs wait, and models are served.
    vLLM has this check at /health and /ping.
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
    """Generate one token with a loaded model; 503 if this takes more than ten seconds.

    Without a loaded model, the check succeeds as soon as the process is ready.
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
    """Return metrics in the Prometheus text format, or in OpenMetrics if the scraper accepts it."""
    try:
        encode, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # it compares versions that are no numbers
        encode, content_type = exposition.choose_encoder("")
    return Response(encode(services.metrics.registry), media_type=content_type)


@router.get("/version")
def versions() -> VersionView:
    return VersionView(
        version=version("sleb-serve"),
        sleb_serve=version("sleb-serve"),
        torch=version("torch"),
        transformers=version("transformers"),
    )


@router.get("/status")
def get_status(services: ServicesDep) -> StatusView:
    """Return the readiness, requests and memory of this process, and the state of jobs and
    workers.
    """
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
