"""What the API does beside answering: it loads models at the start, and sweeps while it runs."""

import asyncio
import logging
from contextlib import suppress

from app.api.deps import Services
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.retention import Keep, Retention

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 60


async def preload(services: Services) -> None:
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


async def sweep(services: Services, is_over: asyncio.Event) -> None:
    """Here and not in a worker, which may be busy for days, or be there only when it is needed."""
    settings = services.settings
    keep = Keep(settings.keep_jobs_s, settings.keep_checkpoints_s)
    retention = Retention(keep, settings.checkpoints_dir, services.jobs, services.deletion)
    while not is_over.is_set():
        try:
            await asyncio.to_thread(retention.sweep)
        except JobStoreUnavailable as error:
            logger.warning("ended jobs are swept later: %s", error)
        except Exception:
            logger.exception("this sweep was not finished")
        with suppress(TimeoutError):
            await asyncio.wait_for(is_over.wait(), SWEEP_EVERY_S)
