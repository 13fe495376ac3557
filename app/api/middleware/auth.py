"""Authentication of all requests, and the limits of their API keys."""

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deps import services_of
from app.api.errors import problem_of
from app.api.problems import problem_response
from app.auth.keys import ApiKey, KeyRefused, ScopeMissing, caller
from app.auth.limits import Lease, LimitReached
from app.auth.scopes import Authorizer, NotLocal, generates
from app.auth.sessions import NotSameOrigin

logger = logging.getLogger(__name__)

_RAISES = (NotLocal, KeyRefused, NotSameOrigin, ScopeMissing, LimitReached)
_MAX_LOGGED_CHARS = 200  # of a path


class AuthMiddleware:
    """ASGI middleware: refuses a request before its body is read and its route is found."""

    def __init__(self, app: ASGIApp, authorizer: Authorizer) -> None:
        self._app = app
        self._authorizer = authorizer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        try:
            key = self._authorizer.authorize(method, path, scope["headers"])
            lease = await _lease(scope, key)
        except _RAISES as error:
            logger.info("refused %.16s %r: %s", method, path[:_MAX_LOGGED_CHARS], error)
            problem = problem_of(error)
            response = problem_response(problem.marshal(), path, problem.headers)
            await response(scope, receive, send)
            return
        token = caller.set(key.name if key else None)
        try:
            if lease is None:
                await self._app(scope, receive, send)
            else:
                await self._run(lease, scope, receive, send)
        finally:
            caller.reset(token)

    async def _run(self, lease: Lease, scope: Scope, receive: Receive, send: Send) -> None:
        async def release_and_send(message: Message) -> None:
            # first the lease: a client may send its next request once it has the whole response
            if message["type"] == "http.response.body" and not message.get("more_body"):
                await lease.release()
            await send(message)

        try:
            await self._app(scope, receive, release_and_send)
        finally:
            await asyncio.shield(lease.release())


async def _lease(scope: Scope, key: ApiKey | None) -> Lease | None:
    """Raises ``LimitReached``."""
    if key is None:
        return None
    is_generation = generates(scope["method"], scope["path"])
    key_limits = services_of(scope["state"]).key_limits
    return await key_limits.admit(key, is_generation=is_generation)
