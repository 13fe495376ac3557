"""The composition root of the API process: every part is made here, and handed to the routes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from asgi_correlation_id import CorrelationIdMiddleware
from fastapi import FastAPI
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from app.api.deps import Services, State
from app.api.errors import install_errors
from app.api.formats.jobs import job_view_at
from app.api.middleware.auth import Guard, describe_refusals
from app.api.middleware.metrics import CountedRequests
from app.api.middleware.security_headers import SecurityHeaders
from app.api.openapi import describe_exactly
from app.api.routes import (
    checkpoints,
    compare,
    events,
    generate,
    health,
    models,
    openai,
    prune_jobs,
    webhook_deliveries,
)
from app.api.upkeep import preload, sweep
from app.auth.limits import KeyLimits
from app.auth.scopes import access_to
from app.compare.shadow import shadow_of
from app.config import ServeSettings
from app.engine.async_engine import AsyncEngine
from app.engine.cuda_graphs import no_recorder, recorder_on
from app.engine.engine import Engine
from app.engine.scheduler import EngineLimits
from app.generation.engine_backend import EngineBackend
from app.generation.generator import Generator
from app.generation.openai_backend import ExternalBackend
from app.metrics.jobs import JobCollector
from app.metrics.metrics import Metrics
from app.metrics.models import ExternalCollector, ModelCollector
from app.models.catalog import Catalog
from app.models.external import ExternalModel, read_external_models
from app.models.registry import ModelRegistry
from app.readiness import Readiness
from app.webhooks.delivery import WebhookDeliverer
from app.webhooks.sender import WebhookSender
from app.webhooks.target import address_rule
from pruning.checkpoints.store import CheckpointStore
from pruning.jobs.deletion import JobDeletion
from pruning.jobs.events import EventFeed
from pruning.jobs.idempotency import IdempotencyKeys
from pruning.jobs.job import Job
from pruning.jobs.outbox import WebhookOutbox
from pruning.jobs.queue import PruneQueue, connect
from pruning.jobs.stats import JobStatsReader
from pruning.jobs.store import JobStore
from pruning.models.store import ModelStore

if TYPE_CHECKING:
    from app.metrics.tracing import Tracing

logger = logging.getLogger(__name__)


def create_app(
    settings: ServeSettings,
    *,
    redis_url: str,
    engine: Engine | None = None,
    tracing: "Tracing | None" = None,
) -> FastAPI:
    """An app that touches nothing until its lifespan begins, but for the file of other servers'
    models. Raises ``InvalidExternalModels``.
    """
    declared = read_external_models(settings.external_models_file)
    tracing = tracing or _tracing(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        services = _services(settings, redis_url, engine, declared)
        deliverer = _deliverer(app, services)
        if tracing is not None:
            services.metrics.on_finished(tracing.finished)
        services.engine.start()
        if deliverer is not None:
            deliverer.start()
        loading = asyncio.create_task(preload(services))
        is_over = asyncio.Event()
        sweeping = asyncio.create_task(sweep(services, is_over))
        try:
            yield {"services": services}
        finally:
            services.readiness.drain(settings.drain_s)  # if the server has not begun with it
            loading.cancel()
            with suppress(asyncio.CancelledError):
                await loading
            is_over.set()
            await sweeping
            ends = [services.engine.stop(services.readiness.drain_s)]
            if deliverer is not None:
                ends.append(deliverer.stop(services.readiness.drain_s))
            await asyncio.gather(*ends)
            if services.shadow is not None:
                await services.shadow.aclose()
            await services.external.aclose()
            await services.key_limits.aclose()
            services.jobs.close()
            services.job_stats.close()
            if tracing is not None:
                await asyncio.to_thread(tracing.shutdown)

    app = FastAPI(
        title="sleb-serve",
        summary="Dense language models and their depth-pruned variants, served and compared.",
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,  # for links between operations
        telemetry=tracing.fastapi if tracing is not None else None,
    )
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    install_errors(app)
    access = access_to(settings)
    app.add_middleware(Guard, access=access)
    app.add_middleware(CountedRequests)
    app.add_middleware(CorrelationIdMiddleware, header_name="X-Request-Id", validator=_is_plain)
    app.add_middleware(SecurityHeaders)
    describe_exactly(app)
    describe_refusals(app, access)
    jobs = (prune_jobs, checkpoints, events, webhook_deliveries)
    for route in (*jobs, generate, compare, models, openai, health):
        app.include_router(route.router)
    return app


def _tracing(settings: ServeSettings) -> "Tracing | None":
    """Without an endpoint nothing of it is imported: the extra may not be there."""
    if settings.otlp_endpoint is None:
        return None
    from app.metrics.tracing import tracing_to  # noqa: PLC0415 - an extra

    return tracing_to(str(settings.otlp_endpoint))


def _services(
    settings: ServeSettings,
    redis_url: str,
    engine: Engine | None,
    declared: Sequence[ExternalModel],
) -> Services:
    models_ = ModelStore(settings.models_dir)
    checkpoints = CheckpointStore(settings.checkpoints_dir)
    connection = connect(redis_url, patience_s=2)
    jobs = JobStore(connection)
    catalog = Catalog(models_, checkpoints, jobs, declared)
    registry = ModelRegistry(
        catalog,
        models_,
        checkpoints,
        device=settings.device,
        max_weight_bytes=settings.max_weight_bytes,
    )
    limits = EngineLimits(max_num_seqs=settings.max_num_seqs, max_model_len=settings.max_model_len)
    async_engine = AsyncEngine(
        engine or Engine(limits, recorder=recorder_on if settings.cuda_graphs else no_recorder),
        settings.max_waiting,
        max_waiting_tokens=settings.max_waiting_tokens,
        stall_s=settings.engine_stall_s,
    )
    metrics = Metrics()
    metrics.registry.register(ModelCollector(async_engine.stats, registry))
    external = ExternalBackend(declared, metrics)
    metrics.registry.register(ExternalCollector(external.num_running, external.num_waiting))
    readiness = Readiness()
    backend = EngineBackend(async_engine, metrics)
    shadow = shadow_of(settings, registry, async_engine, metrics, backend)
    metrics.watch_readiness(readiness)
    job_stats = JobStatsReader(redis_url)
    metrics.registry.register(JobCollector(job_stats.read))
    return Services(
        settings=settings,
        models=models_,
        registry=registry,
        engine=async_engine,
        external=external,
        generator=Generator(
            registry,
            backend,
            external,
            metrics,
            max_timeout_s=settings.request_timeout_s,
        ),
        jobs=jobs,
        job_stats=job_stats,
        idempotency=IdempotencyKeys(connection),
        deletion=JobDeletion(connection, jobs, checkpoints),
        queue=PruneQueue(connection),
        outbox=WebhookOutbox(connection),
        feed=EventFeed(redis_url),
        key_limits=KeyLimits(
            redis_url,
            metrics,
            rate_per_min=settings.key_rate,
            max_concurrent=settings.key_concurrent,
        ),
        metrics=metrics,
        shadow=shadow,
        readiness=readiness,
    )


def _deliverer(app: FastAPI, services: Services) -> WebhookDeliverer | None:
    """None without a secret: messages then wait for a process that has one."""
    settings = services.settings
    if settings.webhook_secret is None:
        return None
    rule = address_rule(is_private_allowed=settings.webhook_allow_private)
    sender = WebhookSender(settings.webhook_secret, rule)

    def describe(job: Job) -> dict[str, Any]:
        path = app.url_path_for("get_prune_job", job_id=job.id)
        return job_view_at(path, job).model_dump(mode="json")

    return WebhookDeliverer(services.outbox, sender, describe)


def _is_plain(request_id: str) -> bool:
    """Anything short and printable may be an id; it goes into logs and headers."""
    return 0 < len(request_id) <= 128 and request_id.isascii() and request_id.isprintable()
