"""Files as answers, whole or in part (RFC 9110, 14). A ``Range`` that cannot be served is a problem
document: starlette's own refusals are plain text.
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
        "title": "The Range header cannot be understood.",
        "detail": "Expected bytes=FIRST-LAST, bytes=FIRST- or bytes=-LENGTH, counted from 0.",
    },
    416: {
        "type": "range-not-satisfiable",
        "title": "The file has no such part.",
        "detail": "The range begins behind the last byte: Content-Range says how many there are.",
    },
}
REFUSED: Mapping[int | str, dict[str, Any]] = {
    status: {
        "description": problem["title"],
        "content": {_PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    for status, problem in _RANGES.items()
}


class Download(FileResponse):
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_refused = False

        async def tell(message: Message) -> None:
            nonlocal is_refused
            if message.get("status") in _RANGES:
                is_refused = True
                await _refusal(message)(scope, receive, send)
            elif not is_refused:
                await send(message)

        await super().__call__(scope, receive, tell)


def _refusal(start: Message) -> Response:
    status = start["status"]
    size = Headers(raw=start["headers"]).get("content-range")
    headers = {"Content-Range": size} if size else {}
    return JSONResponse({**_RANGES[status], "status": status}, status, headers, _PROBLEM)
