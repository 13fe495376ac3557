"""The life of one vLLM: started once it is asked for, started again after its death, given up."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedTokenizerBase

from app.models.external import ExternalModel
from app.vllm.process import Facts, VllmProcess, VllmStartFailed

logger = logging.getLogger(__name__)

MAX_RESTARTS = 3  # one after the other, without HEALTHY_S between them
HEALTHY_S = 10.0  # of service after which earlier deaths do not count
BACK_OFF_S = 1.0  # before the first restart; twice as long before each other
GIVEN_UP_S = 60.0  # until a request may start it again
State = Literal["starting", "ready", "restarting", "failed", "stopped"]


class VllmUnavailable(RuntimeError):
    """vLLM does not serve the model now. The message says why."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class ServerState:
    """For people: what a server does, and why."""

    state: State
    detail: str | None = None
    num_restarts: int = 0
    version: str | None = None


class VllmServer:
    """Bound to one event loop; starts at once; must be stopped."""

    def __init__(
        self, name: str, model: ExternalModel, start: Callable[[], Awaitable[VllmProcess]]
    ) -> None:
        self.model = model
        self.tokenizer: PreTrainedTokenizerBase | None = None  # once it is known
        self._name = name
        self._start = start
        self._process: VllmProcess | None = None
        self._has_started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._failed_s = 0.0
        self.state = ServerState("starting")
        self.used_s = time.monotonic()  # when a request last needed it
        self._life = asyncio.create_task(self._live())

    @property
    def is_given_up(self) -> bool:
        """Whether it failed so long ago that another start may be tried."""
        return self.state.state == "failed" and time.monotonic() - self._failed_s > GIVEN_UP_S

    @property
    def facts(self) -> Facts | None:
        """None unless it is ready."""
        return None if self._process is None else self._process.facts

    async def ready(self) -> Facts:
        """Wait for the first start. Raises ``VllmUnavailable`` without a wait after a death."""
        self.used_s = time.monotonic()
        await asyncio.shield(self._has_started)
        if self._process is not None:
            return self._process.facts
        if self.state.state == "failed":
            left_s = max(1.0, GIVEN_UP_S - (time.monotonic() - self._failed_s))
            raise VllmUnavailable(
                f"vLLM is not serving {self._name!r}: {self.state.detail}", left_s
            )
        raise VllmUnavailable(
            f"vLLM for {self._name!r} is {self.state.state}: {self.state.detail or 'ask again'}",
            BACK_OFF_S,
        )

    async def stop(self) -> None:
        self._life.cancel()
        with suppress(asyncio.CancelledError):
            await self._life
        self._become("stopped")

    async def _live(self) -> None:
        num_deaths = 0
        while True:
            detail, served_s = await self._run()
            is_first = not self._has_started.done()
            num_deaths = 1 if served_s > HEALTHY_S else num_deaths + 1
            if is_first or num_deaths > MAX_RESTARTS:
                self._failed_s = time.monotonic()
                self._become("failed", detail)
                return
            self._become("restarting", detail, self.state.num_restarts + 1)
            await asyncio.sleep(BACK_OFF_S * 2 ** (num_deaths - 1))

    async def _run(self) -> tuple[str, float]:
        """Run a process to its end: the reason of the end, and how long it served."""
        try:
            process = await self._start()
        except VllmStartFailed as error:
            return str(error), 0.0
        except Exception as error:
            logger.exception("vLLM for %s cannot be started", self._name)
            return str(error), 0.0
        began_s = time.monotonic()
        try:
            self._process = process
            self._become("ready", num_restarts=self.state.num_restarts)
            code = await process.process.wait()
            return f"vLLM exited with code {code}", time.monotonic() - began_s
        finally:
            self._process = None
            await process.stop()

    def _become(self, state: State, detail: str | None = None, num_restarts: int = 0) -> None:
        version = self._process.facts.version if self._process else None
        self.state = ServerState(state, detail, num_restarts, version)
        level = logging.WARNING if state in ("restarting", "failed") else logging.INFO
        logger.log(level, "vLLM for %s is %s%s", self._name, state, f": {detail}" if detail else "")
        if state != "starting" and not self._has_started.done():
            self._has_started.set_result(None)
