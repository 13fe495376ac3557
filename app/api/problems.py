"""Problem documents on the wire: as they are, or in OpenAI's error envelope on its routes."""

import asyncio
import gc
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi.sse import format_sse_event
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# OpenAI's error codes, where they are not the problem type with underscores.
_CODES: Mapping[str, str | None] = {
    "invalid-request": None,
    "overloaded": "rate_limit_exceeded",
    "key-limit-reached": "rate_limit_exceeded",
    "token-quota-reached": "rate_limit_exceeded",
    "prompt-too-long": "context_length_exceeded",
}
# what messages name, by its name on the OpenAI routes
_OPENAI_NAMES = (("max_new_tokens", "max_tokens"), ("GET /models", "GET /v1/models"))
_ABOUT_THE_PROMPT = ("prompt-too-long", "request-refused", "no-chat-template")
_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}

TOO_LARGE_TITLE = "The request body is too large."

MAX_NESTED = 50_000  # lists, objects and fields of a body; each takes up to 0.3 µs to parse
MAX_ITEMS = 300_000  # values in lists, as of a prompt of token ids; each takes a fifth of that
_LARGE_BYTES, _LARGE_NESTED = 2**16, 5_000  # from which on bodies take turns
_MARKS = (b"[", b"{", b":", b'"', b'\\"', b",")  # that are counted
_PAUSES = 2  # times as long as a body takes, until the next one
_TURNS = 10  # steps of the event loop: a short request needs about four


@dataclass(frozen=True)
class Problem:
    """A problem document (RFC 9457), and the headers of its response.

    ``type`` is a word that does not change, ``title`` a sentence for it, and ``detail`` says what
    is wrong with this request.
    """

    type: str
    title: str
    status: int
    detail: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def document(self) -> dict[str, Any]:
        """Its fields as JSON has them."""
        known = {"type": self.type, "title": self.title, "status": self.status, **self.extra}
        return {**known, "detail": self.detail} if self.detail else known


class NotOffered(RuntimeError):
    """A part of OpenAI's API that this service does not have."""


def problem_response(problem: Problem, path: str) -> Response:
    """Return a response with the problem, in the format of the route at ``path``."""
    if is_openai(path):
        status, content = envelope(problem, path)
        return JSONResponse(content, status, problem.headers)
    media_type = "application/problem+json"
    return JSONResponse(problem.document, problem.status, problem.headers, media_type)


def is_openai(path: str) -> bool:
    """Whether the path belongs to OpenAI's API."""
    return path.startswith("/v1/")


def envelope(problem: Problem, path: str = "") -> tuple[int, dict[str, Any]]:
    """Return status and body as OpenAI has them. A 422 of this API is a 400 of OpenAI's."""
    status = 400 if problem.status == 422 else problem.status
    kind, message = problem.type, problem.detail or problem.title
    for name, openai_name in _OPENAI_NAMES:
        message = message.replace(name, openai_name)
    param = problem.extra.get("param") or _param_of(kind, path)
    if errors := problem.extra.get("errors"):
        param = _dotted(errors[0]["pointer"]) or None
        message = ": ".join(filter(None, [param, errors[0]["detail"]]))
    error = {
        "message": message,
        "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
        "param": param,
        "code": None if kind.startswith("http-") else _CODES.get(kind, kind.replace("-", "_")),
    }
    return status, {"error": error}


def error_event(problem: Problem, path: str) -> bytes:
    """The event that ends a failed stream of the route at ``path``."""
    if is_openai(path):
        return format_sse_event(data_str=json.dumps(envelope(problem)[1]))
    return format_sse_event(event="error", data_str=json.dumps(problem.document))


_TOO_LARGE = Problem(
    "body-too-large",
    TOO_LARGE_TITLE,
    413,
    "The request body exceeds SLEB_MAX_BODY_BYTES: send a smaller request.",
)
_TOO_MANY = Problem(
    "too-many-values",
    TOO_LARGE_TITLE,
    413,
    f"The body has more than {MAX_NESTED} brackets, braces and fields, or more than "
    f"{MAX_ITEMS} commas: send a smaller request.",
)


class BodyTooLarge:
    """ASGI middleware: limits the values of a body, and says what the limit of bytes refuses.

    The process answers no other request while it parses a body, because the parser holds the
    interpreter's lock. Empty lists take a hundred times as long as text of the same length. After
    each large body, short requests are answered, and the engine has the lock for twice the time
    that the body has taken. Garbage is collected after it, not between its values, of which none is
    garbage.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = _Turns()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_replaced = False
        body = _Body(receive, self._turns)

        async def replace(message: Message) -> None:
            nonlocal is_replaced
            is_start = message["type"] == "http.response.start"
            if is_start and (body.has_too_many or message["status"] == 413):
                is_replaced = True
                problem = _TOO_MANY if body.has_too_many else _TOO_LARGE
                await problem_response(problem, scope["path"])(scope, receive, send)
            elif not is_replaced:
                await send(message)

        await self._app(scope, body.receive, replace)


class _Body:
    """Counts the values of a body while it arrives, brackets and commas of its texts included.

    A colon of a text is no field. A field has two quotes that no backslash escapes, and one of
    them is counted even if the name ends with a backslash.
    """

    def __init__(self, receive: Receive, turns: "_Turns") -> None:
        self._receive = receive
        self._turns = turns
        self._num_bytes = 0
        self._num: Counter[bytes] = Counter()  # of each mark

    @property
    def has_too_many(self) -> bool:
        return self._num_nested > MAX_NESTED or self._num[b","] > MAX_ITEMS

    @property
    def _num_nested(self) -> int:
        num_fields = min(self._num[b":"], self._num[b'"'] - self._num[b'\\"'])
        return self._num[b"["] + self._num[b"{"] + num_fields

    @property
    def _is_large(self) -> bool:
        return self._num_bytes > _LARGE_BYTES or self._num_nested > _LARGE_NESTED

    async def receive(self) -> Message:
        message = await self._receive()
        part: bytes = message.get("body", b"")
        if self._num_bytes > _LARGE_BYTES:
            await self._turns.next_part()
        self._num.update({mark: part.count(mark) for mark in _MARKS})
        if self.has_too_many:
            raise HTTPException(413)  # whatever the response to it is, it is replaced
        self._num_bytes += len(part)
        if self._is_large and not message.get("more_body"):
            await self._turns.wait()
        return message  # and is parsed before anything else runs


class _Turns:
    """The turns of large bodies."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._parts = asyncio.Lock()
        self._next_s = 0.0  # by the clock of the event loop

    async def next_part(self) -> None:
        """Wait until one part of a large body, of all that are received, is handled in a step."""
        async with self._parts:
            await asyncio.sleep(0)

    async def wait(self) -> None:
        """Wait for a turn, which lasts until this task waits for something else."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            await asyncio.sleep(self._next_s - loop.time())
        loop.call_soon(self._end, loop.time())
        _collect_no_garbage_in_this_step()

    def _end(self, began_s: float) -> None:
        now_s = asyncio.get_running_loop().time()
        self._next_s = now_s + _PAUSES * (now_s - began_s)


def _collect_no_garbage_in_this_step() -> None:
    if gc.isenabled():
        gc.disable()
        asyncio.get_running_loop().call_soon(gc.enable)


def _param_of(kind: str, path: str) -> str | None:
    if kind == "model-not-found":
        return "model"
    if kind in _ABOUT_THE_PROMPT:
        return "messages" if "/chat/" in path else "prompt"
    return None


def _dotted(pointer: str) -> str:
    """Convert the JSON pointer ``/messages/0/content`` to ``messages[0].content``."""
    return re.sub(r"\.([0-9]+)(?=\.|$)", r"[\1]", pointer.strip("/").replace("/", "."))
