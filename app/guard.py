"""Stands in front of all routes: asks for keys, and says so in the description of the API."""

import logging
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from app.access import Access, scopes_for
from app.api_keys import KeyRefused, ScopeMissing, caller
from app.errors import described, problem_of
from app.openai_errors import is_openai
from app.refusals import refusal

logger = logging.getLogger(__name__)

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
        method, path = scope["method"], scope["path"]
        try:
            key = self._access.admit(method, path, scope["headers"])
        except (KeyRefused, ScopeMissing) as error:
            logger.info("refused %.16s %r: %s", method, path[:_SHOWN], error)
            problem = problem_of(error)
            answer = refusal(problem.marshal(), path, problem.headers)
            await answer(scope, receive, send)
            return
        token = caller.set(key.name if key else None)
        try:
            await self._app(scope, receive, send)
        finally:
            caller.reset(token)


def describe_keys(app: FastAPI, access: Access) -> None:
    """In the words of OpenAPI, while keys are asked for."""
    generate = app.openapi

    def description() -> dict[str, Any]:
        found = generate()
        if not access.is_on:
            return found
        found = deepcopy(found)  # the other one is kept, and keys may be asked for from now on only
        schemes = found["components"].setdefault("securitySchemes", {})
        schemes[_SCHEME] = {"type": "http", "scheme": "bearer", "description": "`sleb keys create`"}
        for path, operations in found["paths"].items():
            for method, operation in operations.items():
                scopes = scopes_for(method.upper(), path)
                if scopes is not None:
                    operation["security"] = [{_SCHEME: sorted(scopes)}]
                    operation["responses"] |= _refusals(path)
        return found

    app.openapi = description  # type: ignore[method-assign]  # as FastAPI tells one to


def _refusals(path: str) -> Mapping[str, Any]:
    """Of the middleware above: 401 and 403."""
    answers = described(KeyRefused, ScopeMissing)
    found = {str(status): dict(answers[status]) for status in (401, 403)}
    for answer in found.values():
        answer["headers"] = _CHALLENGE
        if is_openai(path):
            view = {"$ref": "#/components/schemas/ErrorView"}
            answer["content"] = {"application/json": {"schema": view}}
    return found
