"""Stands in front of all routes: asks for keys, and says so in the description of the API."""

import asyncio
import logging
from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.deps import services_of
from app.api.errors import PROBLEMS, described, problem_of
from app.api.problems import is_openai, refusal
from app.auth.keys import ApiKey, KeyRefused, ScopeMissing, caller
from app.auth.limits import LimitReached, Place
from app.auth.scopes import Access, NotLocal, generates, scopes_for

logger = logging.getLogger(__name__)

_REFUSALS = (NotLocal, KeyRefused, ScopeMissing, LimitReached)
_SCHEME = "bearer"
_CHALLENGE = {"WWW-Authenticate": {"description": "RFC 6750.", "schema": {"type": "string"}}}
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
            answer = refusal(problem.marshal(), scope["path"], problem.headers)
            await answer(scope, receive, send)
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


def describe_refusals(app: FastAPI, access: Access) -> None:
    """In the words of OpenAPI, as long as they are possible."""
    generate = app.openapi

    def description() -> dict[str, Any]:
        found = deepcopy(generate())  # that one is kept, and keys may be asked for from now on only
        if access.is_on:
            scheme = {"type": "http", "scheme": "bearer", "description": "`sleb keys create`"}
            found["components"].setdefault("securitySchemes", {})[_SCHEME] = scheme
        for path, operations in found["paths"].items():
            for method, operation in operations.items():
                scopes = scopes_for(method.upper(), path)
                if access.is_local:
                    _add(operation["responses"], path, NotLocal)
                elif access.is_on and scopes is not None:
                    operation["security"] = [{_SCHEME: sorted(scopes)}]
                    _add(operation["responses"], path, KeyRefused, ScopeMissing, LimitReached)
        return found

    app.openapi = description  # type: ignore[method-assign]  # as FastAPI tells one to


def _add(responses: dict[str, Any], path: str, *errors: type[Exception]) -> None:
    """To what the routes themselves answer: they may have the same status for another reason."""
    for error in errors:
        status = PROBLEMS[error][0]
        answer = dict(described(error)[status])
        if error in (KeyRefused, ScopeMissing):
            answer["headers"] = _CHALLENGE
        if is_openai(path):
            view = {"$ref": "#/components/schemas/ErrorView"}
            answer["content"] = {"application/json": {"schema": view}}
        before = responses.setdefault(str(status), answer)
        if before is not answer:
            before["description"] += f" {answer['description']}"
