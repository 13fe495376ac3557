"""Generations as responses: whole, or as server-sent events in the format of the route.

A generation is cancelled when its client disconnects.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from typing import Any, Protocol, TypeVar

from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive, Scope, Send

from app.api.errors import problem_of
from app.generation.generator import Generation, Generator
from app.generation.output import Delta, Output
from app.generation.request import GenerationRequest

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0

_Result = TypeVar("_Result")
_View_co = TypeVar("_View_co", covariant=True)


class OutputFormat(Protocol[_View_co]):
    """How outputs look on the wire: as a whole, or event by event.

    Whatever it raises ends a stream with ``error``.
    """

    def whole(self, outputs: Sequence[Output]) -> _View_co: ...

    def deltas(self, deltas: Sequence[Delta]) -> Iterable[bytes]: ...

    def end(self, outputs: Sequence[Output]) -> Iterable[bytes]: ...

    def error(self, error: Exception) -> bytes: ...


async def answer(
    request: Request,
    generator: Generator,
    generation_request: GenerationRequest,
    format_: OutputFormat[_View_co],
    *,
    is_streamed: bool,
) -> "_View_co | EventStream":
    """The response of a route to this request. Raises what ``Generator.generate`` does."""
    if is_streamed:
        return EventStream(generator.open(generation_request), format_)
    return format_.whole(await unless_gone(request.receive, generator.generate(generation_request)))


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Return the result of the work, or cancel it when the client closes its connection.

    The request body must have been read. Raises ``ClientDisconnect``.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect("the client has closed its connection")
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


class EventStream(EventSourceResponse):
    """Errors before the first event are raised; later ones are sent as the last event."""

    def __init__(
        self, opening: AbstractAsyncContextManager[Generation], format_: OutputFormat[object]
    ) -> None:
        # else a proxy may buffer events
        super().__init__((), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._opening = opening
        self._format = format_

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        with suppress(ClientDisconnect):
            await unless_gone(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        async with self._opening as generation:
            self.body_iterator = _events(generation, self._format)
            with suppress(OSError):  # raised by some servers when the client is gone
                await self.stream_response(send)


async def _events(generation: Generation, format_: OutputFormat[object]) -> AsyncIterator[bytes]:
    try:
        with _woken(generation):
            while not generation.is_over:
                deltas = await generation.next_deltas()
                yield b"".join(format_.deltas(deltas)) or KEEPALIVE_COMMENT
        yield b"".join(format_.end(generation.outputs))
    except Exception as error:
        if problem_of(error).status >= 500:
            logger.exception("a stream ends with an error")
        yield format_.error(error)


@contextmanager
def _woken(generation: Generation) -> Iterator[None]:
    """Wake the generation every ``KEEP_ALIVE_S``: one timer, not one per token."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def wake() -> None:
        nonlocal timer
        generation.wake()
        timer = loop.call_later(KEEP_ALIVE_S, wake)

    timer = loop.call_later(KEEP_ALIVE_S, wake)
    try:
        yield
    finally:
        timer.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
