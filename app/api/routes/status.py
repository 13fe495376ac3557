"""The state of the service in one response, for people; machines scrape ``/metrics``."""

import time

import torch

from app.api.deps import ServicesDep
from app.api.formats.same_names import view_of
from app.api.router import Router
from app.api.schemas.status import EngineStatusView, JobStatusView, MemoryStatusView, StatusView
from app.engine.engine import EngineStats
from app.models.registry import ModelRegistry
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.stats import JobStatsReader
from pruning.models.memory import free_bytes

router = Router(tags=["health"])


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
