"""The gate of a cluster: takes HTTP, and has one of the replicas answer it, or each of them.

What a lost replica had not begun to answer is asked again. Routes, limits and streams are the
application's own, in the replica.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from fastapi.sse import format_sse_event
from prometheus_client import CONTENT_TYPE_LATEST
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.api.errors import Problems, problem_of
from app.api.middleware.security_headers import HEADERS
from app.api.problems import envelope, is_openai, refusal
from app.cluster.messages import Asked, NoReplica, ReplicaLost, ReplicasBusy, Whole, asked_of
from app.cluster.metrics_page import page_of

_PROBLEMS: Problems = {
    ReplicasBusy: (429, "overloaded", "Too many requests are waiting."),
    NoReplica: (503, "no-replica", "No replica can answer now."),
    ReplicaLost: (502, "replica-lost", "The replica that worked on this is gone."),
}

logger = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]

MOST_TRIES = 3  # a request that ends every process it comes to is not to end all of them
_PATIENCE_S = {"GET": 5.0, "POST": 600.0}  # for all replicas to answer; loading takes its time


class Gate:
    """Ray Serve makes it, and hands it every request."""

    def __init__(self, replicas: "DeploymentHandle[Any]", max_body_bytes: int) -> None:
        self._replicas = replicas
        self._max_body_bytes = max_body_bytes

    async def __call__(self, request: Request) -> Response:
        asked = asked_of(request.scope, await self._body(request))
        if not asked.is_for_all:
            return Forwarded(self._replicas, asked)
        try:
            return _joined(asked, await self._ask_all(asked))
        except NoReplica as error:
            return _refusal(error, asked.path)

    async def _body(self, request: Request) -> bytes:
        """All of it, unless it is too large: then enough of it for a replica to see that."""
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                break
        return bytes(body)

    async def _ask_all(self, asked: Asked) -> Sequence[Whole]:
        """What those replicas say that live and are in time; at least one. Raises ``NoReplica``."""
        patience_s = _PATIENCE_S[asked.scope["method"]]
        answers: list[Whole] = []
        try:
            async with asyncio.timeout(patience_s):
                async with aclosing(self._arriving(asked)) as arriving:
                    async for answer in arriving:
                        answers.append(answer)
                        if asked.is_answered_by(answer):
                            break
        except TimeoutError as error:
            logger.warning("not all replicas answer %s within %.0f s", asked.path, patience_s)
            if asked.scope["method"] != "GET":
                raise NoReplica(f"not all have answered within {patience_s:.0f} s") from error
        except DeploymentUnavailableError as error:
            raise NoReplica("no replica is ready: wait until one is") from error
        if not answers:
            raise NoReplica("no replica has answered: wait until one is ready")
        return answers

    async def _arriving(self, asked: Asked) -> AsyncGenerator[Whole]:
        """As they come: results_async() would lose all answers for one that is late."""
        broadcast: Any = self._replicas.broadcast("whole", asked)
        results = await broadcast._fetch_replica_results_async()
        asking = [asyncio.ensure_future(result.get_async()) for result in results]
        try:
            for arriving in asyncio.as_completed(asking):
                try:
                    yield await arriving
                except RayError as error:
                    logger.warning("a replica cannot say %s: %s", asked.path, _first_line(error))
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)


class Forwarded(Response):
    """The response of one replica, as it comes. Ends with the client, and ends the replica's."""

    def __init__(self, replicas: "DeploymentHandle[Any]", asked: Asked) -> None:
        super().__init__()
        self._handle = replicas.options(method_name="answer", stream=True)
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = is_events = False
        try:
            async for message in self._messages():
                has_begun = True
                if message["type"] == "http.response.start":
                    is_events = _are_events(message["headers"])
                    await send({**message, "headers": _without_id(message["headers"])})
                else:
                    await send(message)
        except (ReplicaLost, ReplicasBusy, NoReplica) as error:
            if not has_begun:
                await _refusal(error, self._asked.path)(scope, receive, send)
            elif is_events:
                await send({"type": "http.response.body", "body": _event(error, self._asked.path)})
            else:
                raise

    async def _messages(self) -> AsyncIterator[Message]:
        """Raises ``ReplicaLost``, ``ReplicasBusy`` or ``NoReplica``."""
        for number in range(1, MOST_TRIES + 1):
            attempt = _Attempt(self._handle, self._asked)
            try:
                async for message in attempt.messages():
                    yield message
            except RayTaskError:
                raise  # a defect in the replica, which lives
            except RayError as error:
                logger.warning("a replica is lost with a request: %s", _first_line(error))
                if attempt.has_begun or not self._asked.is_repeatable or number == MOST_TRIES:
                    raise _lost(self._asked, attempt) from error
            else:
                return


class _Attempt:
    """One replica, asked once. ``handle`` is one that streams."""

    def __init__(self, handle: "DeploymentHandle[Any]", asked: Asked) -> None:
        self._handle = handle
        self._asked = asked
        self.has_begun = False  # from the first message that was passed on

    async def messages(self) -> AsyncIterator[Message]:
        """What begins a stream of tokens is held back until there is one."""
        held: list[Message] = []
        async for messages in self._batches():
            held += messages
            if self._asked.is_stream_of_tokens and not any(its.get("body") for its in held):
                continue
            for message in held:
                self.has_begun = True
                yield message
            held = []
        for message in held:
            yield message

    async def _batches(self) -> AsyncIterator[list[Message]]:
        answer: Any = self._handle.remote(self._asked)
        try:
            async for messages in answer:
                yield messages
        except BackPressureError as error:
            raise ReplicasBusy("too many requests wait for a replica: retry in 1 s") from error
        except DeploymentUnavailableError as error:
            raise NoReplica("the replicas cannot be started; their logs say why") from error
        except (asyncio.CancelledError, GeneratorExit):
            answer.cancel()  # the client has gone
            raise


def _joined(asked: Asked, answers: Sequence[Whole]) -> Response:
    """The best health, all metrics, and otherwise the answer of whoever could do it least."""
    by_status = sorted(answers, key=lambda answer: answer.status)
    if asked.path == "/metrics" and by_status[-1].status == 200:
        pages = {answer.replica: answer.body.decode() for answer in answers}
        return Response(page_of(pages), headers=HEADERS, media_type=CONTENT_TYPE_LATEST)
    chosen = by_status[0 if asked.is_about_health else -1]
    response = Response(chosen.body, chosen.status)
    response.raw_headers = _without_id(chosen.headers)
    return response


def _refusal(error: Exception, path: str) -> Response:
    problem = problem_of(error, _PROBLEMS)
    return refusal(problem.marshal(), path, {**(problem.headers or {}), **HEADERS})


def _event(error: Exception, path: str) -> bytes:
    """As the application itself ends a stream that fails."""
    content = problem_of(error, _PROBLEMS).marshal()
    if is_openai(path):
        return format_sse_event(data_str=json.dumps(envelope(content)[1]))
    return format_sse_event(event="error", data_str=json.dumps(content))


def _are_events(headers: Headers) -> bool:
    return dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")


def _without_id(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Ray Serve adds the request's id to every response by itself."""
    return [(name, value) for name, value in headers if name.lower() != b"x-request-id"]


def _lost(asked: Asked, attempt: _Attempt) -> ReplicaLost:
    if attempt.has_begun:
        return ReplicaLost("the replica that was answering is gone: ask again from the start")
    if asked.is_repeatable:
        return ReplicaLost(f"{MOST_TRIES} replicas in a row are gone that this was given to")
    return ReplicaLost(
        "the replica that this was given to is gone, and may have done it or not: look, then ask "
        "again; with an Idempotency-Key it would have been asked again"
    )


def _first_line(error: BaseException) -> str:
    return (str(error) or repr(error)).splitlines()[0]
