"""What every request passes: security headers, metrics, authentication, limits of API keys."""

import asyncio
import logging

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deps import services_of
from app.api.errors import problem_of
from app.api.problems import problem_response
from app.auth.audit import AuditLog, AuditUnavailable
from app.auth.clients import client_address
from app.auth.keys import ApiKey, KeyRefused, ScopeMissing, caller
from app.auth.limits import Lease, LimitReached, TokenQuotaReached
from app.auth.scopes import Authorizer, NotLocal, generates
from app.auth.sessions import NotSameOrigin

logger = logging.getLogger(__name__)

HEADERS = {  # which keep browsers from rendering or embedding responses
    "X-Content-Type-Options": "nosniff",  # generated text may look like HTML
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_OTHER = "other"  # an unknown path or method
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_CLIENT_GONE = 499  # there was no response
_UNHANDLED = 500

_RAISES = (NotLocal, KeyRefused, NotSameOrigin, ScopeMissing, LimitReached, TokenQuotaReached)
_MAX_LOGGED_CHARS = 200  # of a path


class SecurityHeadersMiddleware:
    """ASGI middleware: adds the headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def add(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, add)


class MetricsMiddleware:
    """ASGI middleware: counts every request when it ends, with the status of its response.

    By the template of its route, because paths are unbounded.
    """

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
            route = getattr(scope.get("route"), "path", _OTHER)
            method = scope["method"] if scope["method"] in _METHODS else _OTHER
            services_of(scope["state"]).metrics.http.labels(route, method, status).inc()


class AuthMiddleware:
    """ASGI middleware: refuses a request before its body is read and its route is found.

    With ``audit``, every request is noted before it is handled or refused.
    """

    def __init__(self, app: ASGIApp, authorizer: Authorizer, audit: AuditLog | None = None) -> None:
        self._app = app
        self._authorizer = authorizer
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._audit is None:
            await self._handle(scope, receive, send)
            return
        audit, is_answered = self._audit, False

        async def note_and_send(message: Message) -> None:
            nonlocal is_answered
            if message["type"] == "http.response.start":
                is_answered = True
                audit.answered(scope, message["status"])
            await send(message)

        try:
            await self._handle(scope, receive, note_and_send)
        finally:
            if not is_answered:
                audit.answered(scope, None)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        key: ApiKey | None = None
        lease: Lease | None = None

        async def release_and_send(message: Message) -> None:
            # first the lease: a client may send its next request once it has the whole response
            is_last = message["type"] == "http.response.body" and not message.get("more_body")
            if lease is not None and is_last:
                await lease.release()
            await send(message)

        try:
            key = self._authorizer.authorize(scope["method"], scope["path"], scope["headers"])
            if key is not None:
                is_generation = generates(scope["method"], scope["path"])
                key_limits = services_of(scope["state"]).key_limits
                lease = await key_limits.admit(key, is_generation=is_generation)
        except _RAISES as error:
            await self._refuse(error, key, scope, receive, send)
            return
        token, address = caller.set(key), client_address.set((scope.get("client") or (None,))[0])
        try:
            if self._audit is not None:
                self._audit.asked(scope, key)
            await self._app(scope, receive, release_and_send)
        except AuditUnavailable as error:
            await self._refuse(error, key, scope, receive, send)
        finally:
            if lease is not None:
                await asyncio.shield(lease.release())
            caller.reset(token)
            client_address.reset(address)

    async def _refuse(
        self, error: Exception, key: ApiKey | None, scope: Scope, receive: Receive, send: Send
    ) -> None:
        method, path = scope["method"], scope["path"]
        logger.info("refused %.16s %r: %s", method, path[:_MAX_LOGGED_CHARS], error)
        problem = problem_of(error)
        if self._audit is not None and not isinstance(error, AuditUnavailable):
            try:
                known = error.key if isinstance(error, ScopeMissing) else key
                self._audit.asked(scope, known, problem.type)
            except AuditUnavailable as unavailable:
                problem = problem_of(unavailable)
        response = problem_response(problem, path)
        await response(scope, receive, send)
