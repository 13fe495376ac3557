"""The state of the service in one response, for people; machines scrape ``/metrics``."""

import time
from typing import Literal

import torch
from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.api.deps import ServicesDep
from app.api.formats.same_names import view_of
from app.api.schemas.fields import kind
from app.engine.engine import EngineStats
from app.models.registry import ModelRegistry
from pruning.jobs.job import JobStatus
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.stats import JobStatsReader
from pruning.models.memory import free_bytes

router = APIRouter(tags=["health"])


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


@router.get("/status")
def get_status(services: ServicesDep) -> StatusView:
    """Whether the service is ready, what its engine and its memory hold, and who works on jobs."""
    generation = services.generation
    reason = services.readiness.reason or generation.engine.fault
    return StatusView(
        status="ready" if reason is None else "not ready",
        detail=reason,
        at=time.time(),
        engine=_engine(generation.engine.stats()),
        memory=_memory(generation.registry, services.settings.max_weight_bytes),
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


def _memory(registry: ModelRegistry, max_weight_bytes: int | None) -> MemoryStatusView:
    return MemoryStatusView(
        device=registry.device,
        free_bytes=free_bytes(torch.device(registry.device)),
        weight_bytes=sum(registry.weight_bytes().values()),
        max_weight_bytes=max_weight_bytes,
    )


def _jobs(reader: JobStatsReader) -> JobStatusView | None:
    try:
        return view_of(JobStatusView, reader.read())
    except JobStoreUnavailable:
        return None
