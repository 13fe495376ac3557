"""One replica of a cluster: the application with its engine, in a process without a socket.

Ray Serve creates it, checks its health and stops it. It is called as an ASGI server calls an app.
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
from app.cluster.messages import ForwardedRequest, ReplicaResponse
from app.config import ServeSettings
from app.engine.async_engine import EngineStopped
from app.main import create_app
from app.server.serve import set_up_process
from pruning.models.store import NotAModel

logger = logging.getLogger(__name__)

_POLL_S = 0.05  # while the models are being loaded


class Replica:
    """The deployment that runs the application.

    It lives in one event loop. Ray Serve knows its methods by name, and awaits ``__init__`` and
    ``__del__``.
    """

    async def __init__(self, settings: Mapping[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits it
        """Returns once its models are loaded. Raises ``NotAModel`` if there are none."""
        self._name = f"{gethostname()}-{os.getpid()}"
        self._settings = ServeSettings(**settings)
        set_up_process(self._settings)
        assert self._settings.redis_url is not None, "the application requires it"
        self._app = create_app(self._settings, redis_url=self._settings.redis_url)
        self._lifespan = self._app.router.lifespan_context(self._app)
        self._state: Mapping[str, Any] | None = await self._lifespan.__aenter__()
        services = self.services
        while services.readiness.reason is not None:
            await asyncio.sleep(_POLL_S)
        if not services.generation.registry.catalog.dense_names():
            await self._shut_down()
            raise NotAModel(
                f"this machine sees no model in {self._settings.models_dir}: SLEB_DATA_DIR must "
                "be on storage shared by all machines of the cluster, with the same path"
            )

    @property
    def services(self) -> Services:
        assert self._state is not None, "the replica has shut down"
        return services_of(self._state)

    async def stream(self, request: ForwardedRequest) -> AsyncIterator[list[Message]]:
        """ASGI messages of the response, in batches. Closing it disconnects the client."""
        scope = {**request.scope, "state": dict(self._state or {})}
        async for messages in Exchange(self._app, scope, request.body).messages():
            yield messages

    async def respond(self, request: ForwardedRequest) -> ReplicaResponse:
        """The complete response."""
        start, *rest = [message async for batch in self.stream(request) for message in batch]
        body = b"".join(message.get("body", b"") for message in rest)
        return ReplicaResponse(self._name, start["status"], tuple(start["headers"]), body)

    def check_health(self) -> None:
        """Raises ``EngineStopped`` if only a new process can help."""
        if (fault := self.services.generation.engine.fault) is not None:
            raise EngineStopped(fault)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Tokens of waiting requests, and the share of running ones, 0 to 1."""
        engine = self.services.generation.engine
        return {
            "queued_tokens": float(engine.admission.num_waiting_tokens),
            "busy": engine.stats().num_running / self._settings.max_num_seqs,
        }

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """Ray Serve awaits it when all requests have ended; Python calls it again."""
        return self._shut_down() if getattr(self, "_state", None) is not None else None

    async def _shut_down(self) -> None:
        self._state = None
        await self._lifespan.__aexit__(None, None, None)


class Exchange:
    """One request to an ASGI app, and the messages of its response that were not yet read."""

    def __init__(self, app: ASGIApp, scope: dict[str, Any], body: bytes) -> None:
        self._body: bytes | None = body
        self._unread: list[Message] = []
        self._is_complete = False
        self._has_changed = asyncio.Event()
        self._is_disconnected = asyncio.Event()
        self._task = asyncio.ensure_future(app(scope, self._receive, self._send))
        self._task.add_done_callback(lambda _task: self._has_changed.set())

    async def messages(self) -> AsyncIterator[list[Message]]:
        """Batches of messages. Raises what the app raises before its response is complete."""
        try:
            while self._unread or not self._task.done():
                await self._has_changed.wait()
                self._has_changed.clear()
                if self._unread:
                    unread, self._unread = self._unread, []
                    yield unread
            if not self._is_complete:
                self._task.result()
        finally:
            self._is_disconnected.set()
            self._task.add_done_callback(_retrieve_exception)
            with suppress(Exception):
                await self._task

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._is_disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self._unread.append(message)
        is_body = message["type"] == "http.response.body"
        self._is_complete |= is_body and not message.get("more_body", False)
        self._has_changed.set()


def _retrieve_exception(task: "asyncio.Future[None]") -> None:
    """Keep asyncio from logging an error that the app has logged already."""
    if not task.cancelled():
        task.exception()
