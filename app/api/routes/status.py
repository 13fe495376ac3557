"""The state of the service in one response, for people; machines scrape ``/metrics``."""

import time

import torch
from fastapi import APIRouter

from app.api.deps import EngineDep, JobStatsDep, ReadinessDep, RegistryDep, SettingsDep
from app.api.schemas.status import EngineStatusView, JobStatusView, MemoryStatusView, StatusView
from app.engine.engine import EngineStats
from app.models.registry import ModelRegistry
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.stats import JobStatsReader
from pruning.models.memory import free_bytes

router = APIRouter(tags=["health"])


@router.get("/status", name="get_status")
def status(
    readiness: ReadinessDep,
    engine: EngineDep,
    registry: RegistryDep,
    jobs: JobStatsDep,
    settings: SettingsDep,
) -> StatusView:
    """Whether the service is ready, what its engine and its memory hold, and who works on jobs."""
    reason = readiness.reason or engine.fault
    return StatusView(
        status="ready" if reason is None else "not ready",
        detail=reason,
        at=time.time(),
        engine=_engine(engine.stats()),
        memory=_memory(registry, settings.max_weight_bytes),
        jobs=_jobs(jobs),
    )


def _engine(stats: EngineStats) -> EngineStatusView:
    return EngineStatusView(
        num_running=stats.num_running,
        num_waiting=stats.num_waiting,
        kv_cache_usage=stats.kv_cache_usage,
        num_prefix_queries=sum(each.num_queries for each in stats.cache_counts.values()),
        num_prefix_hits=sum(each.num_hits for each in stats.cache_counts.values()),
        num_preemptions=sum(each.num_preemptions for each in stats.cache_counts.values()),
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
        found = reader.read()
    except JobStoreUnavailable:
        return None
    return JobStatusView.model_validate(found, from_attributes=True)
