"""Stands in front of all routes: asks for keys, and says so in the description of the API."""

import asyncio
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deps import services_of
from app.api.errors import problem_of
from app.api.problems import problem_response
from app.auth.keys import ApiKey, KeyRefused, ScopeMissing, caller
from app.auth.limits import LimitReached, Place
from app.auth.scopes import Access, NotLocal, generates

logger = logging.getLogger(__name__)

_REFUSALS = (NotLocal, KeyRefused, ScopeMissing, LimitReached)
_SHOWN = 200  # characters of a path in the log


class Guard:
    """ASGI middleware: what is refused here costs no reading of a body, and no route."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            key = self._access.admit(scope["method"], scope["path"], scope["headers"])
            place = await _place(scope, key)
        except _REFUSALS as error:
            logger.info("refused %.16s %r: %s", scope["method"], scope["path"][:_SHOWN], error)
            problem = problem_of(error)
            response = problem_response(problem.marshal(), scope["path"], problem.headers)
            await response(scope, receive, send)
            return
        token = caller.set(key.name if key else None)
        try:
            if place is None:
                await self._app(scope, receive, send)
            else:
                await self._answer(place, scope, receive, send)
        finally:
            caller.reset(token)

    async def _answer(self, place: Place, scope: Scope, receive: Receive, send: Send) -> None:
        async def leave_and_send(message: Message) -> None:
            """Whoever has read an answer to its end may ask the next at once."""
            if message["type"] == "http.response.body" and not message.get("more_body"):
                await place.leave()
            await send(message)

        try:
            await self._app(scope, receive, leave_and_send)
        finally:
            await asyncio.shield(place.leave())


async def _place(scope: Scope, key: ApiKey | None) -> Place | None:
    """Raises ``LimitReached``."""
    if key is None:
        return None
    is_generation = generates(scope["method"], scope["path"])
    key_limits = services_of(scope["state"]).key_limits
    return await key_limits.admit(key, is_generation=is_generation)
