"""File responses, whole or in part (RFC 9110, 14).

A ``Range`` that cannot be served is a problem document; Starlette's response is plain text.
"""

from collections.abc import Mapping
from typing import Any

from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

_PROBLEM = "application/problem+json"
_RANGES: Mapping[int, Mapping[str, str]] = {
    400: {
        "type": "range-malformed",
        "title": "Malformed Range header.",
        "detail": "Expected bytes=FIRST-LAST, bytes=FIRST- or bytes=-LENGTH, counted from 0.",
    },
    416: {
        "type": "range-not-satisfiable",
        "title": "Range not satisfiable.",
        "detail": "The range starts beyond the end of the file: Content-Range gives its size.",
    },
}
RANGE_RESPONSES: Mapping[int | str, dict[str, Any]] = {
    status: {
        "description": problem["title"],
        "content": {_PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, problem in _RANGES.items()
}


class Download(FileResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_replaced = False

        async def replace(message: Message) -> None:
            nonlocal is_replaced
            if message.get("status") in _RANGES:
                is_replaced = True
                await _problem(message)(scope, receive, send)
            elif not is_replaced:
                await send(message)

        await super().__call__(scope, receive, replace)


def _problem(start: Message) -> Response:
    status = start["status"]
    size = Headers(raw=start["headers"]).get("content-range")
    headers = {"Content-Range": size} if size else {}
    return JSONResponse({**_RANGES[status], "status": status}, status, headers, _PROBLEM)
