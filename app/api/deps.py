"""What routes ask for, as annotated parameters; made once, in the lifespan of the app."""

from dataclasses import dataclass
from typing import Annotated, TypedDict

from fastapi import Depends, Request

from app.auth.limits import KeyLimits
from app.compare.shadow import Shadow
from app.config import ServeSettings
from app.engine.async_engine import AsyncEngine, EngineStopped
from app.generation.generator import Generator
from app.generation.openai_backend import ExternalBackend
from app.metrics.metrics import Metrics
from app.models.catalog import Catalog
from app.models.registry import ModelRegistry
from app.readiness import Readiness
from pruning.jobs.deletion import JobDeletion
from pruning.jobs.events import EventFeed
from pruning.jobs.idempotency import IdempotencyKeys
from pruning.jobs.outbox import WebhookOutbox
from pruning.jobs.queue import PruneQueue
from pruning.jobs.stats import JobStatsReader
from pruning.jobs.store import JobStore
from pruning.models.store import ModelStore


@dataclass(frozen=True)
class Services:
    settings: ServeSettings
    models: ModelStore
    registry: ModelRegistry
    engine: AsyncEngine
    external: ExternalBackend
    generator: Generator
    jobs: JobStore
    job_stats: JobStatsReader
    idempotency: IdempotencyKeys
    deletion: JobDeletion
    queue: PruneQueue
    outbox: WebhookOutbox
    feed: EventFeed
    key_limits: KeyLimits
    metrics: Metrics
    shadow: Shadow | None
    readiness: Readiness


class State(TypedDict):
    """What the lifespan yields; starlette puts it on every request."""

    services: Services


def _services_of(request: Request) -> Services:
    services = request.state.services
    assert isinstance(services, Services)
    return services


# All are asynchronous: FastAPI asks any other function in a thread.


async def _services(request: Request) -> Services:
    return _services_of(request)


async def _catalog(request: Request) -> Catalog:
    return _services_of(request).registry.catalog


async def _generator(request: Request) -> Generator:
    """Not for what arrives while the process drains. Raises ``EngineStopped``."""
    services = _services_of(request)
    if services.readiness.is_draining:
        raise EngineStopped("this process is shutting down: ask another, or this one later")
    return services.generator


ServicesDep = Annotated[Services, Depends(_services)]
CatalogDep = Annotated[Catalog, Depends(_catalog)]
GeneratorDep = Annotated[Generator, Depends(_generator)]
