"""The ingress of a cluster: takes HTTP requests and forwards each to one replica, or to all.

A request is sent to another replica if the first one is lost before it has begun to respond.
Routes, limits and streams are those of the application in the replica.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import chain
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.api.errors import Problems, problem_of
from app.api.middleware import HEADERS
from app.api.problems import error_event, problem_response
from app.cluster.messages import (
    ForwardedRequest,
    NoReplica,
    ReplicaLost,
    ReplicaResponse,
    ReplicasBusy,
)

_PROBLEMS: Problems = {
    ReplicasBusy: (429, "overloaded", "Too many requests are waiting."),
    NoReplica: (503, "no-replica", "No replica is available."),
    ReplicaLost: (502, "replica-lost", "The replica that handled the request was lost."),
}

logger = logging.getLogger(__name__)

Headers = Iterable[tuple[bytes, bytes]]

MAX_ATTEMPTS = 3  # so that a request that kills its replica cannot kill all of them
BROADCAST_TIMEOUT_S = {"GET": 5.0, "POST": 600.0}  # for all replicas; POST loads models
REPLICA_LABEL = "replica"
_REPLICAS_HEAD = (
    "# HELP sleb_replicas Replicas whose metrics are on this page.",
    "# TYPE sleb_replicas gauge",
)


class Ingress:
    """The deployment that Ray Serve routes every HTTP request to."""

    def __init__(self, replicas: "DeploymentHandle[Any]", max_body_bytes: int) -> None:
        self._replicas = replicas
        self._max_body_bytes = max_body_bytes

    async def __call__(self, http_request: Request) -> Response:
        body = await self._body(http_request)
        request = ForwardedRequest.of(http_request.scope, body)
        if not request.is_broadcast:
            return ForwardedResponse(self._replicas, request)
        try:
            return combined(request, await self._broadcast(request))
        except NoReplica as error:
            return _problem_response(error, request.path)

    async def _body(self, http_request: Request) -> bytes:
        """The body, cut off once it exceeds the limit; a replica then refuses it."""
        body = bytearray()
        async for chunk in http_request.stream():
            body += chunk
            if len(body) > self._max_body_bytes:
                break
        return bytes(body)

    async def _broadcast(self, request: ForwardedRequest) -> Sequence[ReplicaResponse]:
        """The responses of all live replicas, at least one; one healthy replica is enough.

        After the timeout a GET does with the responses so far. Raises ``NoReplica``.
        """
        timeout_s = BROADCAST_TIMEOUT_S[request.method]
        responses: list[ReplicaResponse] = []
        try:
            async with asyncio.timeout(timeout_s):
                async with aclosing(self._arriving(request)) as arriving:
                    async for response in arriving:
                        responses.append(response)
                        if request.is_about_health and response.status == 200:
                            break
        except TimeoutError as error:
            logger.warning(
                "not all replicas responded to %s within %.0f s", request.path, timeout_s
            )
            if request.method != "GET":
                raise NoReplica(f"not all replicas responded within {timeout_s:.0f} s") from error
        except DeploymentUnavailableError as error:
            raise NoReplica("no replica is ready: retry later") from error
        if not responses:
            raise NoReplica("no replica responded: wait until one is ready")
        return responses

    async def _arriving(self, request: ForwardedRequest) -> AsyncGenerator[ReplicaResponse]:
        """Responses as they arrive. results_async() would lose all of them for one late replica."""
        broadcast: Any = self._replicas.broadcast("respond", request)
        results = await broadcast._fetch_replica_results_async()
        tasks = [asyncio.ensure_future(result.get_async()) for result in results]
        try:
            for arriving in asyncio.as_completed(tasks):
                try:
                    yield await arriving
                except RayError as error:
                    logger.warning(
                        "a replica did not respond to %s: %s", request.path, _reason(error)
                    )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class ForwardedResponse(Response):
    """The response of one replica, passed on as it arrives. If the client leaves, both end."""

    def __init__(self, replicas: "DeploymentHandle[Any]", request: ForwardedRequest) -> None:
        super().__init__()
        self._handle = replicas.options(method_name="stream", stream=True)
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = is_events = False
        try:
            async for message in self._messages():
                has_begun = True
                if message["type"] == "http.response.start":
                    kind = dict(message["headers"]).get(b"content-type", b"")
                    is_events = kind.startswith(b"text/event-stream")
                    await send({**message, "headers": _without_id(message["headers"])})
                else:
                    await send(message)
        except (ReplicaLost, ReplicasBusy, NoReplica) as error:
            path = self._request.path
            if not has_begun:
                await _problem_response(error, path)(scope, receive, send)
            elif is_events:
                event = error_event(problem_of(error, _PROBLEMS), path)
                await send({"type": "http.response.body", "body": event})
            else:
                raise

    async def _messages(self) -> AsyncIterator[Message]:
        """Raises ``ReplicaLost``, ``ReplicasBusy`` or ``NoReplica``."""
        for number in range(1, MAX_ATTEMPTS + 1):
            has_begun = False
            try:
                async for messages in self._batches():
                    has_begun = True
                    for message in messages:
                        yield message
            except RayTaskError:
                raise  # an error in the replica, which is still alive
            except RayError as error:
                logger.warning("a replica was lost while handling a request: %s", _reason(error))
                is_last = number == MAX_ATTEMPTS
                if has_begun or not self._request.is_repeatable or is_last:
                    raise _replica_lost(self._request, has_begun=has_begun) from error
            else:
                return

    async def _batches(self) -> AsyncIterator[list[Message]]:
        """ASGI messages of one attempt. The headers of a token stream wait for its first token."""
        responses: Any = self._handle.remote(self._request)
        held: list[Message] = []
        try:
            async for messages in responses:
                held += messages
                if self._request.method != "POST" or any(message.get("body") for message in held):
                    yield held
                    held = []
        except BackPressureError as error:
            raise ReplicasBusy(
                "too many requests are waiting for a replica: retry in 1 s"
            ) from error
        except DeploymentUnavailableError as error:
            raise NoReplica("the replicas cannot be started: see their logs") from error
        except (asyncio.CancelledError, GeneratorExit):
            responses.cancel()  # the client has left
            raise
        yield held


def combined(request: ForwardedRequest, responses: Sequence[ReplicaResponse]) -> Response:
    """One response for a broadcast.

    Health is that of the healthiest replica. Metrics are merged. Otherwise the highest status
    wins, as the request has failed if it failed anywhere.
    """
    by_status = sorted(responses, key=lambda response: response.status)
    if request.path == "/metrics" and by_status[-1].status == 200:
        pages = {response.replica: response.body.decode() for response in responses}
        return Response(merged_metrics(pages), headers=HEADERS, media_type=CONTENT_TYPE_LATEST)
    chosen = by_status[0 if request.is_about_health else -1]
    response = Response(chosen.body, chosen.status)
    response.raw_headers = _without_id(chosen.headers)
    return response


def merged_metrics(pages: Mapping[str, str]) -> str:
    """One page of the metrics of all replicas, labelled with their names.

    ``pages`` has the Prometheus text of each replica by its name. Samples of one family stand
    together, as the format demands. Lines are not parsed: a page has thousands, and the ingress
    forwards requests meanwhile.
    """
    merged = {"sleb_replicas": [*_REPLICAS_HEAD, f"sleb_replicas {float(len(pages))}"]}
    for replica, page in pages.items():
        lines, is_new = list[str](), False
        for line in page.splitlines():
            if line.startswith("# HELP "):  # the first line of a family
                name = line.split(" ", 3)[2]
                is_new, lines = name not in merged, merged.setdefault(name, [])
            if not line.startswith("#"):
                lines.append(_labelled(line, replica))
            elif is_new:
                lines.append(line)
    return "\n".join([*chain.from_iterable(merged.values()), ""])


def _labelled(line: str, replica: str) -> str:
    """The line of a sample with the label of its replica in front."""
    label = f'{REPLICA_LABEL}="{replica}"'
    name, mark, rest = re.split(r"([{ ])", line, maxsplit=1)
    return f"{name}{{{label},{rest}" if mark == "{" else f"{name}{{{label}}} {rest}"


def _problem_response(error: Exception, path: str) -> Response:
    problem = problem_of(error, _PROBLEMS)
    return problem_response(replace(problem, headers={**problem.headers, **HEADERS}), path)


def _replica_lost(request: ForwardedRequest, *, has_begun: bool) -> ReplicaLost:
    if has_begun:
        return ReplicaLost("the replica was lost during its response: send the request again")
    if request.is_repeatable:
        return ReplicaLost(
            f"{MAX_ATTEMPTS} replicas in a row were lost while handling this request"
        )
    return ReplicaLost(
        "the replica was lost and may have executed the request: check, then send it "
        "again; requests with an Idempotency-Key are retried automatically"
    )


def _without_id(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Drop the request id, which Ray Serve adds to every response itself."""
    return [(name, value) for name, value in headers if name.lower() != b"x-request-id"]


def _reason(error: BaseException) -> str:
    return (str(error) or repr(error)).splitlines()[0]
