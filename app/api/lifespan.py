"""What the API process does beside answering requests, from its start to its shutdown."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

from app.api.deps import Services
from app.auth.keys import KeyFile, default_quota, running_limits
from pruning.jobs.deletion import Retention, RetentionPeriods
from pruning.jobs.redis import JobStoreUnavailable
from pruning.storage.store import StoreError

if TYPE_CHECKING:  # needs the extra otel
    from app.metrics.tracing import Tracing

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 60
LOOK_FOR_LIMITS_EVERY_S = 5
REPEAT_LIMITS_S = 60
COUNT_WORKERS_EVERY_S = 1


@asynccontextmanager
async def running(
    services: Services, tracing: "Tracing | None", when_ready: Callable[[], object] | None = None
) -> AsyncIterator[None]:
    """Start the background work of the process; at the end stop it and close its connections.

    ``when_ready`` is called in a thread once the models are loaded.
    A server that drains before this does has set the deadline of the shutdown already.
    """
    generation, settings = services.generation, services.settings
    if tracing is not None:
        services.metrics.on_finished(tracing.finished)
    generation.engine.start()
    if services.jobs.deliverer is not None:
        services.jobs.deliverer.start()
    # not workers: one may be busy for days, or run only on demand
    keep = RetentionPeriods(settings.keep_jobs_s, settings.keep_checkpoints_s)
    retention = Retention(keep, services.checkpoints, services.jobs.store, services.jobs.deletion)
    preloading = asyncio.create_task(_prepare(services, when_ready))
    is_stopping = asyncio.Event()
    repeating = [
        asyncio.create_task(repeat(work, name, every_s, is_stopping))
        for work, name, every_s in (
            (retention.sweep, "expired jobs are deleted", SWEEP_EVERY_S),
            (_publishing(services), "limits of jobs are published", LOOK_FOR_LIMITS_EVERY_S),
            (services.jobs.stats.count_workers, "workers are counted", COUNT_WORKERS_EVERY_S),
        )
    ]
    try:
        yield
    finally:
        services.readiness.drain(settings.drain_s)
        preloading.cancel()
        is_stopping.set()
        with suppress(asyncio.CancelledError):
            await preloading
        await asyncio.gather(*repeating)
        await _finish(services)
        await _close(services)
        if tracing is not None:
            await asyncio.to_thread(tracing.shutdown)


async def _prepare(services: Services, when_ready: Callable[[], object] | None) -> None:
    """Load the models that the settings name, or every dense one; then the process is ready.

    A model that cannot be loaded is logged and left out.
    """
    settings, readiness = services.settings, services.readiness
    readiness.reason = "loading models"
    dense_names = services.catalog.dense_names()
    if settings.engine == "vllm":  # which stops one for each beyond this number
        dense_names = dense_names[: settings.vllm_servers]
    if not dense_names:
        logger.warning("no models in %s: add one with `sleb models add`", settings.models_dir)
    for name in dense_names if settings.preload is None else settings.preload:
        try:
            await services.generation.generator.load(name)
        except Exception:
            logger.exception("model %s cannot be served", name)
    readiness.reason = None
    if when_ready is not None:
        await asyncio.to_thread(when_ready)


async def repeat(
    work: Callable[[], None], name: str, every_s: float, is_stopping: asyncio.Event
) -> None:
    """Do the work in a thread every ``every_s`` seconds. ``name`` is a sentence for the log."""
    while not is_stopping.is_set():
        try:
            await asyncio.to_thread(work)
        except (JobStoreUnavailable, StoreError) as error:
            logger.warning("%s later: %s", name, error)
        except Exception:
            logger.exception("maintenance task failed: %s", name)
        with suppress(TimeoutError):
            await asyncio.wait_for(is_stopping.wait(), every_s)


def _publishing(services: Services) -> Callable[[], None]:
    """Workers do not read the key file, which may be on another machine."""
    keys, defaults = KeyFile(services.settings.keys_file), default_quota(services.settings)
    published: Mapping[str, int] | None = None
    due_s = 0.0  # again, as Redis may have lost them

    def publish() -> None:
        nonlocal published, due_s
        limits = running_limits(keys.quotas(), defaults)
        if limits == published and time.monotonic() < due_s:
            return
        due_s = time.monotonic() + REPEAT_LIMITS_S
        services.jobs.queue.set_running_limits(limits)
        published = limits

    return publish


async def _finish(services: Services) -> None:
    """Give requests and webhook messages the time that is left to finish."""
    left_s = services.readiness.drain_s
    finishing = [services.generation.engine.stop(left_s)]
    if services.jobs.deliverer is not None:
        finishing.append(services.jobs.deliverer.stop(left_s))
    await asyncio.gather(*finishing)


async def _close(services: Services) -> None:
    if services.generation.shadow is not None:
        await services.generation.shadow.aclose()
    await services.generation.generator.aclose()
    await services.key_limits.aclose()
    services.jobs.store.close()
    services.jobs.stats.close()
