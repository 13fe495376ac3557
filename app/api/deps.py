"""The parts of the API process, and the annotated parameters by which routes ask for them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict, TypeVar

from fastapi import Depends, Path, Request
from fastapi.concurrency import run_in_threadpool

from app.api.submission import JobSubmission
from app.auth.keys import seen_tenant
from app.auth.limits import KeyLimits
from app.auth.scopes import Authorizer
from app.auth.sessions import Sessions
from app.compare.shadow import Shadow
from app.config import ServeSettings
from app.engine.async_engine import AsyncEngine, EngineStopped
from app.generation.generator import Generator
from app.generation.openai_backend import ExternalBackend
from app.generation.token_check import TokenCheck
from app.metrics.metrics import Metrics
from app.models.catalog import Catalog
from app.models.registry import ModelRegistry
from app.readiness import Readiness
from app.results.store import ResultStore
from app.vllm.servers import VllmServers
from app.webhooks.delivery import WebhookDeliverer
from pruning.checkpoints.store import CheckpointStore
from pruning.jobs.deletion import JobDeletion
from pruning.jobs.events import EventFeed
from pruning.jobs.job import JobNotFound
from pruning.jobs.outbox import WebhookOutbox
from pruning.jobs.queue import PruneQueue
from pruning.jobs.stats import JobStatsReader
from pruning.jobs.store import JobStore

_Part = TypeVar("_Part")


@dataclass(frozen=True)
class JobServices:
    """Pruning jobs: their store and queue in Redis, and what works on both."""

    store: JobStore
    queue: PruneQueue
    submission: JobSubmission
    deletion: JobDeletion
    events: EventFeed
    outbox: WebhookOutbox
    stats: JobStatsReader
    deliverer: WebhookDeliverer | None  # None without a secret to sign messages with


@dataclass(frozen=True)
class GenerationServices:
    """Models, and what generates text with them."""

    registry: ModelRegistry
    engine: AsyncEngine
    external: ExternalBackend
    vllm: VllmServers | None  # None if vLLM is not here
    generator: Generator
    shadow: Shadow | None  # None if no traffic is replayed
    token_check: TokenCheck
    evaluating: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by the one that runs


@dataclass(frozen=True)
class Services:
    """Every part of the process. Made once, when the app starts."""

    settings: ServeSettings
    readiness: Readiness
    metrics: Metrics
    authorizer: Authorizer
    sessions: Sessions
    key_limits: KeyLimits
    checkpoints: CheckpointStore
    results: ResultStore
    jobs: JobServices
    generation: GenerationServices


class State(TypedDict):
    """What the lifespan yields. Starlette copies it to the scope of every request."""

    services: Services


def services_of(state: Mapping[str, Any]) -> Services:
    """Return the parts from the ``state`` of an ASGI scope."""
    services = state["services"]
    assert isinstance(services, Services)
    return services


def _part(get: Callable[[Services], _Part]) -> Callable[[Request], Awaitable[_Part]]:
    # asynchronous, because FastAPI calls any other function in a thread
    async def part(request: Request) -> _Part:
        return get(services_of(request.scope["state"]))

    return part


async def _generator(request: Request) -> Generator:
    """Raises ``EngineStopped`` for requests that arrive while the process drains."""
    services = services_of(request.scope["state"])
    if services.readiness.is_draining:
        raise EngineStopped("this process is shutting down: retry, or ask another replica")
    return services.generation.generator


SettingsDep = Annotated[ServeSettings, Depends(_part(lambda services: services.settings))]
AuthorizerDep = Annotated[Authorizer, Depends(_part(lambda services: services.authorizer))]
SessionsDep = Annotated[Sessions, Depends(_part(lambda services: services.sessions))]
ReadinessDep = Annotated[Readiness, Depends(_part(lambda services: services.readiness))]
MetricsDep = Annotated[Metrics, Depends(_part(lambda services: services.metrics))]
KeyLimitsDep = Annotated[KeyLimits, Depends(_part(lambda services: services.key_limits))]
CheckpointsDep = Annotated[CheckpointStore, Depends(_part(lambda services: services.checkpoints))]
ResultsDep = Annotated[ResultStore, Depends(_part(lambda services: services.results))]

JobsDep = Annotated[JobStore, Depends(_part(lambda services: services.jobs.store))]
QueueDep = Annotated[PruneQueue, Depends(_part(lambda services: services.jobs.queue))]
SubmissionDep = Annotated[JobSubmission, Depends(_part(lambda services: services.jobs.submission))]
DeletionDep = Annotated[JobDeletion, Depends(_part(lambda services: services.jobs.deletion))]
EventsDep = Annotated[EventFeed, Depends(_part(lambda services: services.jobs.events))]
JobStatsDep = Annotated[JobStatsReader, Depends(_part(lambda services: services.jobs.stats))]
OutboxDep = Annotated[WebhookOutbox, Depends(_part(lambda services: services.jobs.outbox))]

GenerationDep = Annotated[GenerationServices, Depends(_part(lambda services: services.generation))]
RegistryDep = Annotated[
    ModelRegistry, Depends(_part(lambda services: services.generation.registry))
]
CatalogDep = Annotated[
    Catalog, Depends(_part(lambda services: services.generation.registry.catalog))
]
EvaluatingDep = Annotated[
    asyncio.Lock, Depends(_part(lambda services: services.generation.evaluating))
]
EngineDep = Annotated[AsyncEngine, Depends(_part(lambda services: services.generation.engine))]
VllmDep = Annotated[VllmServers | None, Depends(_part(lambda services: services.generation.vllm))]
TokenCheckDep = Annotated[
    TokenCheck, Depends(_part(lambda services: services.generation.token_check))
]
GeneratorDep = Annotated[Generator, Depends(_generator)]


async def _job_id(
    job_id: Annotated[str, Path(description="Id of the job, as `prn-0123456789abcdef01234`.")],
    jobs: JobsDep,
) -> str:
    """Raises ``JobNotFound`` for a job of another tenant, as for one that does not exist."""
    if (tenant := seen_tenant()) is not None:
        owner = await run_in_threadpool(jobs.owner, job_id)
        if owner not in (None, tenant):
            raise JobNotFound(job_id)
    return job_id


JobId = Annotated[str, Depends(_job_id)]
ModelOrAlias = Annotated[
    str,
    Path(description="A dense model, a variant of one, as `smollm2-135m@-3`, or an alias."),
]
