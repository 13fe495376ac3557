"""Counts HTTP requests by the template of their route, because paths are unbounded."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deps import services_of

_OTHER = "other"  # an unknown path or method
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_GONE = 499  # there was no response
_UNHANDLED = 500


class MetricsMiddleware:
    """ASGI middleware: counts every request when it ends, with the status of its response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = _CLIENT_GONE

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception:
            status = _UNHANDLED
            raise
        finally:
            _count(scope, status)


def _count(scope: Scope, status: int) -> None:
    route = getattr(scope.get("route"), "path", _OTHER)
    method = scope["method"] if scope["method"] in _METHODS else _OTHER
    services_of(scope["state"]).metrics.http.labels(route, method, status).inc()
