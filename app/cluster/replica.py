"""One replica of a cluster: the whole application with its engine, in a process without a socket.

Ray Serve makes it, asks it how it is, and ends it. It is asked what an ASGI server would ask it.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import suppress
from socket import gethostname
from typing import Any

from starlette.types import ASGIApp, Message

from app.api.deps import Services, services_of
from app.cluster.messages import Asked, Whole
from app.config import ServeSettings
from app.engine.async_engine import EngineStopped
from app.main import create_app
from app.server.serve import set_up_process
from pruning.models.store import NotAModel

logger = logging.getLogger(__name__)

_LOOK_S = 0.05  # between two looks at whether the models are loaded


class Replica:
    """Made in the event loop that it works in. Ray Serve knows its methods by their names, and
    awaits ``__init__`` and ``__del__``.
    """

    async def __init__(self, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]  # awaited
        """Returns when its models are loaded. Raises ``NotAModel`` if it sees none."""
        self._name = f"{gethostname()}-{os.getpid()}"
        self._settings = ServeSettings(**settings)
        set_up_process(self._settings)
        assert self._settings.redis_url is not None, "the cluster is not started without"
        self._app = create_app(self._settings, redis_url=self._settings.redis_url)
        self._life = self._app.router.lifespan_context(self._app)
        self._state: Mapping[str, Any] | None = await self._life.__aenter__()
        services = self.services
        while services.readiness.reason is not None:
            await asyncio.sleep(_LOOK_S)
        if not services.generation.registry.catalog.dense_names():
            await self._end()
            raise NotAModel(
                f"this machine sees no model in {self._settings.models_dir}: SLEB_DATA_DIR has to "
                f"be on storage that all machines of the cluster share, under the same path"
            )

    @property
    def services(self) -> Services:
        assert self._state is not None, "it has ended"
        return services_of(self._state)

    async def answer(self, asked: Asked) -> AsyncIterator[list[Message]]:
        """ASGI's messages of the response, as many at once as there are.

        Whoever closes it is a client that has gone.
        """
        exchange = Exchange(self._app, {**asked.scope, "state": dict(self._state or {})}, asked)
        async for messages in exchange.messages():
            yield messages

    async def whole(self, asked: Asked) -> Whole:
        """The response, when it is complete."""
        said = [message async for messages in self.answer(asked) for message in messages]
        body = b"".join(message.get("body", b"") for message in said)
        return Whole(self._name, said[0]["status"], tuple(said[0]["headers"]), body)

    def check_health(self) -> None:
        """Raises ``EngineStopped`` for what only a fresh process can mend."""
        if (ailment := self.services.generation.engine.ailment) is not None:
            raise EngineStopped(ailment)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tokens that wait for a slot here, and which share of the slots is taken, 0 to 1."""
        engine = self.services.generation.engine
        return {
            "queued_tokens": float(engine.num_waiting_tokens),
            "busy": engine.stats().num_running / self._settings.max_num_seqs,
        }

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """Ray Serve awaits it when nothing is left to answer; Python calls it once more."""
        return self._end() if getattr(self, "_state", None) is not None else None

    async def _end(self) -> None:
        self._state = None
        await self._life.__aexit__(None, None, None)


class Exchange:
    """One request to an ASGI app, and what was said of it and not yet passed on."""

    def __init__(self, app: ASGIApp, scope: dict[str, Any], asked: Asked) -> None:
        self._body: bytes | None = asked.body
        self._said: list[Message] = []
        self._is_complete = False
        self._has_news = asyncio.Event()
        self._is_gone = asyncio.Event()
        self._work = asyncio.ensure_future(app(scope, self._receive, self._send))
        self._work.add_done_callback(lambda _work: self._has_news.set())

    async def messages(self) -> AsyncIterator[list[Message]]:
        """Raises what the app does before its response is complete."""
        try:
            while self._said or not self._work.done():
                await self._has_news.wait()
                self._has_news.clear()
                if self._said:
                    said, self._said = self._said, []
                    yield said
            if not self._is_complete:
                self._work.result()
        finally:
            self._is_gone.set()
            self._work.add_done_callback(_look_at)
            with suppress(Exception):
                await self._work

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._is_gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._said.append(message)
        is_body = message["type"] == "http.response.body"
        self._is_complete |= is_body and not message.get("more_body", False)
        self._has_news.set()


def _look_at(work: "asyncio.Future[None]") -> None:
    """The app has logged its error already, and sends it on for its server to see."""
    if not work.cancelled():
        work.exception()
