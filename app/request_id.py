"""The id of the request that a task answers, in logs, responses and the header ``X-Request-Id``."""

from contextvars import ContextVar
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER = "X-Request-Id"
MAX_CHARS = 128
current_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class RequestIdMiddleware:
    """ASGI middleware: takes over a client's id, or makes one, and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        id_ = given if _is_usable(given) else uuid4().hex
        current_request_id.set(id_)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).append(HEADER, id_)
            await send(message)

        await self._app(scope, receive, send_with_id)


def _is_usable(text: str) -> bool:
    """Accept short printable ids from clients: they go into logs and headers."""
    return 0 < len(text) <= MAX_CHARS and text.isascii() and text.isprintable()
