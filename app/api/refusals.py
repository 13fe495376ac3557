"""Answers of middleware: they come before any route or handler of errors is asked."""

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import envelope, is_openai

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
