"""Generations as responses: whole, or as server-sent events in the format of the route. Other work
is followed by events of its progress.

They are refused before they are parsed while the queue is full, and cancelled when their client
disconnects.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from app.api.deps import services_of
from app.api.errors import problem_of
from app.api.problems import error_event
from app.generation.generator import Generation, Generator
from app.generation.output import Delta, Output
from app.generation.request import GenerationRequest

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0

_Opened = TypeVar("_Opened")
_Result = TypeVar("_Result")
_View_co = TypeVar("_View_co", covariant=True)
Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Observe = Callable[[BaseModel], object]  # called with how far the work is


class SheddingRoute(APIRoute):
    """A route whose POST requests need a place in the queue.

    The queue is checked before the body is read. A place is held only after it: a client that sends
    no body would hold it for nothing.
    """

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()
        if self.methods != {"POST"}:
            return handle

        async def shed(request: Request) -> Response:
            """Raises ``Overloaded``."""
            generator = services_of(request.scope["state"]).generation.generator
            generator.check_room()
            await request.body()
            with generator.reserved():
                return await handle(request)

        return shed


class OutputFormat(Protocol[_View_co]):
    """How outputs look on the wire: as a whole, or event by event.

    Whatever it raises ends a stream with an event for the error.
    """

    def whole(self, outputs: Sequence[Output]) -> _View_co: ...

    def deltas(self, deltas: Sequence[Delta]) -> Iterable[bytes]: ...

    def end(self, outputs: Sequence[Output]) -> Iterable[bytes]: ...


async def respond(
    request: Request,
    generator: Generator,
    generation_request: GenerationRequest,
    format_: OutputFormat[_View_co],
    *,
    is_streamed: bool,
) -> "_View_co | EventStream":
    """The response of a route to this request. Raises what ``Generator.generate`` does."""
    if is_streamed:
        opening, path = generator.open(generation_request), request.url.path
        return EventStream(opening, lambda generation: _events(generation, format_, path))
    outputs = await unless_gone(request.receive, generator.generate(generation_request))
    if generation_request.params.num_prompt_logprobs is None:
        return format_.whole(outputs)
    return await asyncio.to_thread(format_.whole, outputs)  # every token of the prompts is spelled


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _Result]) -> _Result:
    """Return the result of the work, or cancel it when the client closes its connection.

    The request body must have been read. Raises ``ClientDisconnect``.
    """
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait((working, watching), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect("the client closed the connection")
        return working.result()
    finally:
        for task in (working, watching):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


class EventStream(EventSourceResponse):
    """Sends the ``events`` of what ``opening`` opens before any header is sent."""

    def __init__(
        self,
        opening: AbstractAsyncContextManager[_Opened],
        events: Callable[[_Opened], AsyncIterator[bytes]],
    ) -> None:
        # else a proxy may buffer events
        super().__init__((), headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._opening: AbstractAsyncContextManager[Any] = opening
        self._events: Callable[[Any], AsyncIterator[bytes]] = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        with suppress(ClientDisconnect):
            await unless_gone(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        async with self._opening as opened:
            self.body_iterator = self._events(opened)
            with suppress(OSError):  # raised by some servers when the client is gone
                await self.stream_response(send)


async def _events(
    generation: Generation, format_: OutputFormat[object], path: str
) -> AsyncIterator[bytes]:
    """Errors before the first event are raised; later ones are sent as the last event.

    Some clients lose events that come with a comment, so a stream that flows has none.
    """
    loop = asyncio.get_running_loop()
    comment_s = loop.time() + KEEP_ALIVE_S  # when one is due

    async def wake() -> None:
        """One timer for all tokens."""
        while True:
            await asyncio.sleep(max(comment_s - loop.time(), 0) or KEEP_ALIVE_S)
            if loop.time() >= comment_s:
                generation.wake()

    waking = asyncio.create_task(wake())
    try:
        while not generation.is_over:
            content = b"".join(format_.deltas(await generation.next_deltas()))
            if content or loop.time() >= comment_s:
                yield content or KEEPALIVE_COMMENT
                comment_s = loop.time() + KEEP_ALIVE_S
        yield b"".join(format_.end(generation.outputs))
    except Exception as error:
        problem = problem_of(error)
        if problem.status >= 500:
            logger.exception("a stream ended with an error")
        yield error_event(problem, path)
    finally:
        waking.cancel()


@asynccontextmanager
async def followed(work: "Followed") -> AsyncIterator["Followed"]:
    """Start the work, and cancel it at the end. Raises what it raises before its first progress."""
    try:
        await work.begin()
        yield work
    finally:
        await work.aclose()


class Followed:
    """Work that reports how far it is, and in the end has a result."""

    def __init__(
        self, work: Callable[[Observe], Coroutine[Any, Any, BaseModel]], path: str
    ) -> None:
        self._work = work
        self._path = path
        self._progress: BaseModel | None = None
        self._changed = asyncio.Event()
        self._task: asyncio.Task[BaseModel] | None = None

    async def begin(self) -> None:
        """Wait for the first progress. Raises the failure of the work."""
        self._task = asyncio.create_task(self._work(self._observe))
        self._task.add_done_callback(lambda _: self._changed.set())
        await self._changed.wait()
        if self._task.done():
            self._task.result()

    def _observe(self, progress: BaseModel) -> None:
        self._progress = progress
        self._changed.set()

    async def events(self) -> AsyncIterator[bytes]:
        """``progress`` whenever it changes, then ``done`` with the result, or ``error``."""
        assert self._task is not None
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await self._changed.wait()
                if self._task.done():
                    break
                progress = self._progress if self._changed.is_set() else None
                self._changed.clear()
                yield _event("progress", progress) if progress else KEEPALIVE_COMMENT
            yield _event("done", self._task.result())
        except Exception as error:
            problem = problem_of(error)
            if problem.status >= 500:
                logger.exception("a stream ends with an error")
            yield error_event(problem, self._path)

    async def aclose(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


def _event(name: str, view: BaseModel) -> bytes:
    return format_sse_event(event=name, data_str=view.model_dump_json(ensure_ascii=True))


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
