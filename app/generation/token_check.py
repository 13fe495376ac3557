"""A check of health that generates: one real token through the engine, within a deadline."""

import asyncio
import time
import uuid
from dataclasses import dataclass

from app.engine.async_engine import AsyncEngine, EngineStopped
from app.engine.scheduling.admission import Overloaded
from app.engine.scheduling.sequence import FinishReason, Request, SamplingParams
from app.models.registry import ModelRegistry

DEADLINE_S = 10.0


@dataclass
class TokenCheck:
    """Generates one token with a loaded model. Calls at the same time share one token, so that
    probes add next to no work.
    """

    registry: ModelRegistry
    engine: AsyncEngine
    deadline_s: float = DEADLINE_S
    _running: asyncio.Task[str | None] | None = None

    async def failure(self) -> str | None:
        """Why no token was generated. None after a token, and while no model is loaded."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._failure())
        return await asyncio.shield(self._running)

    async def _failure(self) -> str | None:
        variants = self.registry.loaded_variants()
        if not variants:
            return None
        request = Request(
            f"health-{uuid.uuid4().hex}",
            variants[0],
            prompt_ids=(0,),
            params=SamplingParams(max_new_tokens=1, ignore_eos=True),
            deadline_s=time.monotonic() + self.deadline_s,
        )
        try:
            async with (
                asyncio.timeout(self.deadline_s),
                self.engine.stream(request) as events,
            ):
                reasons = [event.finish_reason async for event in events]
        except TimeoutError:
            return self._too_late
        except (Overloaded, EngineStopped) as error:
            return str(error)
        if reasons[-1] is FinishReason.TIMEOUT:
            return self._too_late
        return (
            None if reasons[-1] is FinishReason.LENGTH else "the engine failed: see the service log"
        )

    @property
    def _too_late(self) -> str:
        return f"the engine generated no token within {self.deadline_s:g} s"
