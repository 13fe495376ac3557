"""OpenAI's envelope for errors, made of this project's problem documents.

Answers of middleware: they come before any route or handler of errors is asked.
"""

import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What clients look for, where it is not the type of the problem in other letters.
_CODES: Mapping[str, str | None] = {
    "invalid-request": None,
    "overloaded": "rate_limit_exceeded",
    "key-limit-reached": "rate_limit_exceeded",
    "prompt-too-long": "context_length_exceeded",
}
_ABOUT_THE_PROMPT = ("prompt-too-long", "request-refused", "no-chat-template")
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


def is_openai(path: str) -> bool:
    """Whether what asks for this path is a client of OpenAI's API."""
    return path.startswith("/v1/")


def envelope(problem: Mapping[str, Any], path: str = "") -> tuple[int, dict[str, Any]]:
    """Status and body; what is 422 elsewhere is 400 here."""
    status: int = 400 if problem["status"] == 422 else problem["status"]
    kind, message = str(problem["type"]), problem.get("detail") or problem["title"]
    param = problem.get("param") or _param_of(kind, path)
    if errors := problem.get("errors"):
        param = _name_of(errors[0]["pointer"]) or None
        message = ": ".join(filter(None, [param, errors[0]["detail"]]))
    error = {
        "message": message,
        "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "param": param,
        "code": None if kind.startswith("http-") else _CODES.get(kind, kind.replace("-", "_")),
    }
    return status, {"error": error}


def _param_of(kind: str, path: str) -> str | None:
    if kind == "model-not-found":
        return "model"
    if kind in _ABOUT_THE_PROMPT:
        return "messages" if "/chat/" in path else "prompt"
    return None


def _name_of(pointer: str) -> str:
    """``/messages/0/content`` as OpenAI writes it: ``messages[0].content``."""
    return re.sub(r"\.([0-9]+)(?=\.|$)", r"[\1]", pointer.strip("/").replace("/", "."))


TOO_LARGE_TITLE = "The request's body is too large."
_TOO_LARGE = {
    "type": "body-too-large",
    "title": TOO_LARGE_TITLE,
    "status": 413,
    "detail": "The body is larger than SLEB_MAX_BODY_BYTES allows: send less text at once.",
}


def refusal(
    problem: Mapping[str, Any], path: str, headers: Mapping[str, str] | None = None
) -> Response:
    """A problem document, or what clients of the OpenAI routes know."""
    if is_openai(path):
        status, content = envelope(problem, path)
        return JSONResponse(content, status, headers)
    return JSONResponse(problem, problem["status"], headers, media_type="application/problem+json")


class TooLarge:
    """The body limit answers in plain text; this says the same as all other errors do."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_replaced = False

        async def replace(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start" and message["status"] == 413:
                is_replaced = True
                await refusal(_TOO_LARGE, scope["path"])(scope, receive, send)
            elif not is_replaced:
                await send(message)

        await self._app(scope, receive, replace)
