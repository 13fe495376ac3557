"""The composition root of the API process: makes every part, and the app around them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import torch
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.body_limit import RequestBodyLimitMiddleware

from app.api.deps import GenerationServices, JobServices, Services, State
from app.api.errors import install_errors
from app.api.formats.jobs import job_view_at
from app.api.job_checks import JobChecks, TextsFolder
from app.api.lifespan import running
from app.api.middleware import AuthMiddleware, MetricsMiddleware, SecurityHeadersMiddleware
from app.api.openapi import describe_api
from app.api.query import with_known_parameters
from app.api.routes import (
    checkpoints,
    compare,
    evals,
    events,
    frontiers,
    generate,
    health,
    jobs,
    models,
    openai,
    results,
    session,
    tokenize,
)
from app.api.submission import JobSubmission
from app.auth.audit import AuditLog
from app.auth.keys import default_quota, seen_tenant
from app.auth.limits import KeyLimits
from app.auth.scopes import Authorizer, authorizer_of, sessions_of
from app.compare.shadow import shadow_of
from app.config import ServeSettings
from app.engine.async_engine import AsyncEngine
from app.engine.autotuning import Autotuner
from app.engine.cache.caches import check_cache
from app.engine.engine import Engine
from app.engine.kernels.compiled.openmp import keep_compiled_in
from app.engine.running.cuda_graphs import no_recorder, recorder_on
from app.engine.running.prepared_kernels import REPRODUCIBLE
from app.engine.scheduling.scheduler import EngineLimits
from app.generation.engine_backend import EngineBackend
from app.generation.generator import Generator
from app.generation.openai_backend import ExternalBackend
from app.generation.token_check import TokenCheck
from app.generation.vllm_backend import VllmBackend
from app.metrics.jobs import JobCollector
from app.metrics.metrics import Metrics
from app.metrics.models import ModelCollector
from app.models.aliases import Aliases
from app.models.catalog import Catalog
from app.models.external import ExternalModel, read_external_models
from app.models.measured_qualities import MeasuredQualities
from app.models.measured_speedups import MeasuredSpeedups
from app.models.registry import ModelRegistry
from app.readiness import Readiness
from app.request_id import RequestIdMiddleware
from app.results.store import ResultStore
from app.vllm.options import VllmOptions
from app.vllm.servers import VllmServers, servers_of
from app.web import routes as web
from app.webhooks.delivery import WebhookDeliverer
from app.webhooks.sender import WebhookSender
from app.webhooks.target import address_rule
from pruning.checkpoints.store import CheckpointStore
from pruning.extras import require_extra
from pruning.jobs.deletion import JobDeletion
from pruning.jobs.events import EventFeed
from pruning.jobs.idempotency import IdempotencyKeys
from pruning.jobs.job import Job
from pruning.jobs.outbox import WebhookOutbox
from pruning.jobs.queue import PruneQueue
from pruning.jobs.redis import connect
from pruning.jobs.stats import JobStatsReader
from pruning.jobs.store import JobStore
from pruning.models.memory import total_bytes
from pruning.models.store import ModelStore, pick_device
from pruning.scraping import metrics_served
from pruning.storage.checkpoints import checkpoints_of

if TYPE_CHECKING:
    from app.metrics.tracing import Tracing

_ROUTES = (
    openai,  # the first ones are found soonest, and those that generate are asked most often
    generate,
    jobs,
    checkpoints,
    events,
    compare,
    evals,
    frontiers,
    models,
    results,
    health,
    session,
    tokenize,
)


def create_app(
    settings: ServeSettings,
    *,
    redis_url: str,
    engine: Engine | None = None,
    tracing: "Tracing | None" = None,
    describe_early: bool = False,
) -> FastAPI:
    """Make the app. Its parts are made, and connections opened, when its lifespan begins.

    FastAPI makes the description of the API when it is first asked for, which stops the event loop
    for 0.25 s; ``describe_early`` has it made in a thread when the models are loaded.
    Raises ``InvalidExternalModels``, ``VllmMissing`` or ``AuditUnavailable``.
    """
    declared, vllm = read_external_models(settings.external_models_file), VllmOptions.of(settings)
    tracing = tracing or _tracing(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        services = _services(app, settings, redis_url, engine, declared, vllm)
        registry, host = services.metrics.registry, str(settings.host)
        with metrics_served(registry, host, settings.metrics_port, "SLEB_METRICS_PORT"):
            async with running(services, tracing, app.openapi if describe_early else None):
                yield {"services": services}

    app = FastAPI(
        title="sleb-serve",
        summary="Dense language models and their depth-pruned variants, served and compared.",
        lifespan=lifespan,
        openapi_url=None,  # app.api.openapi has it, and app.web the page, without a foreign request
        docs_url=None,
        redoc_url=None,
        telemetry=tracing.fastapi if tracing is not None else None,
    )
    authorizer = authorizer_of(settings)
    _add_middleware(app, settings, authorizer)
    _add_routes(app, settings)
    describe_api(app, authorizer, is_audited=settings.audit_log is not None)
    return app


def _add_middleware(app: FastAPI, settings: ServeSettings, authorizer: Authorizer) -> None:
    """From the innermost to the outermost."""
    app.add_middleware(RequestBodyLimitMiddleware, max_body_size=settings.max_body_bytes)
    install_errors(app)
    audit = None if settings.audit_log is None else AuditLog(settings.audit_log)
    app.add_middleware(AuthMiddleware, authorizer=authorizer, audit=audit)
    app.add_middleware(MetricsMiddleware)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(SecurityHeadersMiddleware)


def _add_routes(app: FastAPI, settings: ServeSettings) -> None:
    """Operations have the names of their functions, for links between them."""
    routers = [module.router for module in _ROUTES]
    if not settings.metrics_port:
        routers.append(health.metrics_router)
    for router in routers:
        app.router.routes.extend(map(with_known_parameters, router.routes))
    app.router.routes.extend(web.router.routes)  # whose pages read their parameters themselves
    for route in app.routes:
        if isinstance(route, APIRoute):
            route.operation_id = route.name


def _tracing(settings: ServeSettings) -> "Tracing | None":
    """Without an endpoint nothing is imported: the extra may not be installed."""
    if settings.otlp_endpoint is None:
        return None
    require_extra("otel", "SLEB_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT")
    from app.metrics.tracing import tracing_to  # noqa: PLC0415 - an extra

    return tracing_to(str(settings.otlp_endpoint))


def _services(
    app: FastAPI,
    settings: ServeSettings,
    redis_url: str,
    engine: Engine | None,
    declared: Sequence[ExternalModel],
    vllm: VllmOptions | None,
) -> Services:
    metrics, readiness = Metrics(with_vllm_names=settings.vllm_metrics), Readiness()
    metrics.watch_readiness(readiness)
    models, checkpoints = ModelStore(settings.models_dir), checkpoints_of(settings)
    aliases = Aliases(settings.data_dir)
    measured = MeasuredSpeedups(settings.data_dir), MeasuredQualities(settings.data_dir)
    jobs = _jobs(app, settings, redis_url, models, checkpoints, aliases)
    metrics.registry.register(JobCollector(jobs.stats.read))
    tuner = _tuner(settings)
    async_engine = _engine(settings, engine, tuner)
    registry = ModelRegistry(
        Catalog(models, checkpoints, jobs.store, declared, aliases, *measured, seen_tenant),
        models,
        checkpoints,
        device=settings.device,
        max_weight_bytes=settings.max_weight_bytes,
        tuner=tuner,
        prepare=async_engine.prepare,
    )
    external = ExternalBackend(declared, metrics, settings.prefix_cache)
    servers = None if vllm is None else servers_of(settings, vllm, registry.catalog, checkpoints)
    return Services(
        settings=settings,
        readiness=readiness,
        metrics=metrics,
        authorizer=authorizer_of(settings),
        sessions=sessions_of(settings),
        key_limits=_key_limits(settings, redis_url, metrics),
        checkpoints=checkpoints,
        results=ResultStore(settings.data_dir),
        jobs=jobs,
        generation=_generation(settings, registry, async_engine, external, servers, metrics),
    )


def _key_limits(settings: ServeSettings, redis_url: str, metrics: Metrics) -> KeyLimits:
    limits = KeyLimits(
        redis_url,
        metrics,
        rate_per_min=settings.key_rate,
        max_concurrent=settings.key_concurrent,
        default_quota=default_quota(settings),
    )
    metrics.on_finished(limits.finished)
    return limits


def _jobs(
    app: FastAPI,
    settings: ServeSettings,
    redis_url: str,
    models: ModelStore,
    checkpoints: CheckpointStore,
    aliases: Aliases,
) -> JobServices:
    connection = connect(redis_url, num_retries=2)
    store, queue, outbox = JobStore(connection), PruneQueue(connection), WebhookOutbox(connection)
    rule = address_rule(is_private_allowed=settings.webhook_allow_private)
    texts = TextsFolder(settings.texts_dir, settings.max_text_bytes)
    submission = JobSubmission(
        store,
        queue,
        IdempotencyKeys(connection),
        JobChecks(models, texts, checkpoints, _memory_of_workers(settings), settings.task_data_dir),
        checkpoints,
        max_queued=settings.max_queued_jobs,
        webhook_rule=None if settings.webhook_secret is None else rule,
        default_quota=default_quota(settings),
    )
    return JobServices(
        store=store,
        queue=queue,
        submission=submission,
        deletion=JobDeletion(connection, store, checkpoints, aliases.names_of),
        events=EventFeed(redis_url),
        outbox=outbox,
        stats=JobStatsReader(redis_url),
        deliverer=_deliverer(app, settings, outbox, Catalog(models, checkpoints)),
    )


def _memory_of_workers(settings: ServeSettings) -> int | None:
    """None where workers may be on other machines: the embedded job store has none from there."""
    if settings.redis_url is not None:
        return None
    return total_bytes(torch.device(pick_device(settings.device)))


def _deliverer(
    app: FastAPI, settings: ServeSettings, outbox: WebhookOutbox, catalog: Catalog
) -> WebhookDeliverer | None:
    """None without a secret: messages then wait for a process that has one."""
    if settings.webhook_secret is None:
        return None
    rule = address_rule(is_private_allowed=settings.webhook_allow_private)
    sender = WebhookSender(settings.webhook_secret, rule)

    def describe(job: Job) -> dict[str, Any]:
        path = app.url_path_for("get_prune_job", job_id=job.id)
        return job_view_at(path, job, catalog).model_dump(mode="json")

    return WebhookDeliverer(outbox, sender, describe)


def _tuner(settings: ServeSettings) -> Autotuner:
    if settings.tune != "off" or settings.reproducible:
        keep_compiled_in(settings.data_dir)
    if settings.reproducible:  # nothing is timed
        return Autotuner(always=REPRODUCIBLE)
    return Autotuner.of(settings.tune, settings.data_dir)


def _engine(settings: ServeSettings, engine: Engine | None, tuner: Autotuner) -> AsyncEngine:
    """Raises ``CacheTooLarge`` or ``UnusableDevice``."""
    check_cache(settings.kv_cache_bytes, torch.device(pick_device(settings.device)))
    limits = EngineLimits(
        max_num_seqs=settings.max_num_seqs,
        max_batch_tokens=settings.max_batch_tokens,
        kv_cache_bytes=settings.kv_cache_bytes,
        max_model_len=settings.max_model_len,
    )
    return AsyncEngine(
        engine
        or Engine(
            limits,
            recorder=recorder_on if settings.cuda_graphs else no_recorder,
            tuner=tuner,
            is_reproducible=settings.reproducible,
        ),
        settings.max_waiting,
        max_waiting_tokens=settings.max_waiting_tokens,
        stall_s=settings.engine_stall_s,
    )


def _generation(
    settings: ServeSettings,
    registry: ModelRegistry,
    engine: AsyncEngine,
    external: ExternalBackend,
    servers: VllmServers | None,
    metrics: Metrics,
) -> GenerationServices:
    backend = EngineBackend(engine, metrics, settings.prefix_cache)
    vllm = None if servers is None else VllmBackend(servers, metrics, settings.prefix_cache)
    loads = tuple if vllm is None else vllm.loads
    metrics.registry.register(ModelCollector(engine.stats, registry, loads, external.loads))
    return GenerationServices(
        registry=registry,
        engine=engine,
        external=external,
        vllm=servers,
        generator=Generator(
            registry,
            backend,
            external,
            metrics,
            vllm=vllm,
            max_timeout_s=settings.request_timeout_s,
        ),
        shadow=shadow_of(settings, registry, engine, metrics, backend, vllm),
        token_check=TokenCheck(registry, engine),
    )
