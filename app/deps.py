"""What routes ask for, as annotated parameters; made once, in the lifespan of the app."""

from dataclasses import dataclass
from typing import Annotated, TypedDict

from fastapi import Depends, Request

from app.catalog import Catalog
from app.config import ServeSettings
from app.engine.async_engine import AsyncEngine
from app.generation import Generator
from app.metrics import Metrics
from app.registry import ModelRegistry
from pruning.event_feed import EventFeed
from pruning.idempotency import IdempotencyKeys
from pruning.job_deletion import JobDeletion
from pruning.jobs import JobStore
from pruning.models import ModelStore
from pruning.queue import PruneQueue


@dataclass
class Readiness:
    """Whether traffic should come here; ``reason`` says why not."""

    reason: str | None = "starting"


@dataclass(frozen=True)
class Services:
    settings: ServeSettings
    models: ModelStore
    registry: ModelRegistry
    engine: AsyncEngine
    generator: Generator
    jobs: JobStore
    idempotency: IdempotencyKeys
    deletion: JobDeletion
    queue: PruneQueue
    feed: EventFeed
    metrics: Metrics
    readiness: Readiness


class State(TypedDict):
    """What the lifespan yields; starlette puts it on every request."""

    services: Services


def _services(request: Request) -> Services:
    services = request.state.services
    assert isinstance(services, Services)
    return services


def _catalog(request: Request) -> Catalog:
    return _services(request).registry.catalog


def _generator(request: Request) -> Generator:
    return _services(request).generator


ServicesDep = Annotated[Services, Depends(_services)]
CatalogDep = Annotated[Catalog, Depends(_catalog)]
GeneratorDep = Annotated[Generator, Depends(_generator)]
