"""The parts of the API process, and the annotated parameters by which routes ask for them."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

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
    measuring: asyncio.Lock = field(default_factory=asyncio.Lock)  # held by a frontier

    @property
    def catalog(self) -> Catalog:
        return self.generation.registry.catalog


class State(TypedDict):
    """What the lifespan yields. Starlette copies it to the scope of every request."""

    services: Services


def services_of(state: Mapping[str, Any]) -> Services:
    """Return the parts from the ``state`` of an ASGI scope."""
    services = state["services"]
    assert isinstance(services, Services)
    return services


async def _services(request: Request) -> Services:
    # asynchronous, because FastAPI calls any other function in a thread
    return services_of(request.scope["state"])


ServicesDep = Annotated[Services, Depends(_services)]


async def _generator(services: ServicesDep) -> Generator:
    """Raises ``EngineStopped`` for requests that arrive while the process drains."""
    if services.readiness.is_draining:
        raise EngineStopped(
            "this process is shutting down: retry the request, or send it to another replica"
        )
    return services.generation.generator


GeneratorDep = Annotated[Generator, Depends(_generator)]


async def _job_id(
    job_id: Annotated[str, Path(description="Id of the job, e.g. `prn-0123456789abcdef01234`.")],
    services: ServicesDep,
) -> str:
    """Raises ``JobNotFound`` for a job of another tenant, as for one that does not exist."""
    if (tenant := seen_tenant()) is not None:
        owner = await run_in_threadpool(services.jobs.store.owner, job_id)
        if owner not in (None, tenant):
            raise JobNotFound(job_id)
    return job_id


JobId = Annotated[str, Depends(_job_id)]
ModelOrAlias = Annotated[
    str,
    Path(description="A dense model, a variant such as `smollm2-135m@-3`, or an alias."),
]
