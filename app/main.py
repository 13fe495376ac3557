"""The composition root of the API process: every part is made here, and handed to the routes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from app.catalog import Catalog
from app.config import ServeSettings
from app.deps import Readiness, Services, State
from app.engine.async_engine import AsyncEngine
from app.engine.engine import Engine
from app.engine.scheduler import EngineLimits
from app.errors import install_errors
from app.generation import Generator
from app.metrics import Metrics
from app.registry import ModelRegistry
from app.routes import generate, health, job_checkpoints, job_events, models, prune_jobs
from pruning.checkpoints import CheckpointStore
from pruning.event_feed import EventFeed
from pruning.idempotency import IdempotencyKeys
from pruning.job import JobStatus
from pruning.job_deletion import JobDeletion
from pruning.jobs import JobStore, JobStoreUnavailable
from pruning.models import ModelStore
from pruning.queue import PruneQueue, connect

logger = logging.getLogger(__name__)


def create_app(settings: ServeSettings, *, redis_url: str, engine: Engine | None = None) -> FastAPI:
    """An app that touches nothing until its lifespan begins."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        services = _services(settings, redis_url, engine)
        services.engine.start()
        loading = asyncio.create_task(_preload(services))
        try:
            yield {"services": services}
        finally:
            services.readiness.reason = "draining"
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading
            await services.engine.stop(settings.drain_s)
            services.jobs.close()

    app = FastAPI(
        title="sleb-serve",
        summary="Dense language models and their depth-pruned variants, served and compared.",
        lifespan=lifespan,
    )
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    app.add_middleware(CorrelationIdMiddleware, header_name="X-Request-Id", validator=_is_plain)
    install_errors(app)
    for route in (prune_jobs, job_checkpoints, job_events, generate, models, health):
        app.include_router(route.router)
    return app


def _services(settings: ServeSettings, redis_url: str, engine: Engine | None) -> Services:
    models_ = ModelStore(settings.models_dir)
    checkpoints = CheckpointStore(settings.checkpoints_dir)
    registry = ModelRegistry(
        Catalog(models_, checkpoints), models_, checkpoints, device=settings.device
    )
    limits = EngineLimits(max_num_seqs=settings.max_num_seqs, max_model_len=settings.max_model_len)
    async_engine = AsyncEngine(engine or Engine(limits), settings.max_waiting)
    connection = connect(redis_url, patience_s=2)
    jobs = JobStore(connection)
    metrics = Metrics()
    metrics.watch(async_engine.stats, lambda: _job_counts(jobs), registry.catalog.entries)
    return Services(
        settings=settings,
        models=models_,
        registry=registry,
        engine=async_engine,
        generator=Generator(registry, async_engine, metrics),
        jobs=jobs,
        idempotency=IdempotencyKeys(connection),
        deletion=JobDeletion(connection, jobs, checkpoints),
        queue=PruneQueue(connection),
        feed=EventFeed(redis_url),
        metrics=metrics,
        readiness=Readiness(),
    )


async def _preload(services: Services) -> None:
    """Load what is there. One model that cannot be loaded does not keep the others away."""
    services.readiness.reason = "loading models"
    wanted = services.settings.preload
    if not services.registry.catalog.dense_names():
        logger.warning("no models in %s: put one there", services.settings.models_dir)
    for name in services.registry.catalog.dense_names() if wanted is None else wanted:
        try:
            await services.generator.load(name)
        except Exception:
            logger.exception("model %s is not served", name)
    services.readiness.reason = None


def _job_counts(jobs: JobStore) -> Mapping[JobStatus, int]:
    try:
        return jobs.counts()
    except JobStoreUnavailable:
        return {}


def _is_plain(request_id: str) -> bool:
    """Anything short and printable may be an id; it goes into logs and headers."""
    return 0 < len(request_id) <= 128 and request_id.isascii() and request_id.isprintable()
