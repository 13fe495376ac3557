"""One table from exceptions to HTTP: RFC 9457 problem documents, with nothing internal in a 500."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from asgi_correlation_id import correlation_id
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_problem.error import Problem, StatusProblem
from fastapi_problem.handler import (
    ExceptionHandler,
    add_exception_handler,
    new_exception_handler,
)
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.catalog import UnknownModel
from app.engine.async_engine import EngineStopped, Overloaded
from app.engine.engine import RequestRefused
from app.engine.sequence import InvalidSampling
from app.generation import GenerationFailed
from pruning.blocks import UnknownArchitecture, UnsupportedConfig
from pruning.checkpoints import CheckpointCorrupt, CheckpointNotFound
from pruning.estimate import DiskTooSmall
from pruning.event_feed import TooManyWatchers
from pruning.idempotency import IdempotencyKeyReused
from pruning.job import IllegalTransition
from pruning.job_creation import IdempotencyInFlight, QueueFull
from pruning.jobs import JobNotFound, JobStoreUnavailable
from pruning.models import ModelNotFound, NotAModel
from pruning.sleb import TooManyRemovals
from pruning.spec import InvalidSpec, TargetUnreachable

logger = logging.getLogger(__name__)


# exception: status, type of the problem, title. The message of the exception is the detail.
PROBLEMS: Mapping[type[Exception], tuple[int, str, str]] = {
    UnknownModel: (404, "model-not-found", "There is no such model."),
    ModelNotFound: (404, "model-not-found", "There is no such model."),
    JobNotFound: (404, "job-not-found", "There is no such job."),
    CheckpointNotFound: (404, "checkpoint-not-found", "There is no such checkpoint, or such file."),
    IllegalTransition: (409, "illegal-transition", "The job's state does not allow this."),
    IdempotencyInFlight: (409, "idempotency-in-flight", "The first such request is not over yet."),
    IdempotencyKeyReused: (422, "idempotency-key-reused", "The key belongs to another request."),
    InvalidSpec: (422, "invalid-spec", "A setting of the job is out of range."),
    TooManyRemovals: (422, "too-many-removals", "The model has not that many free blocks."),
    TargetUnreachable: (422, "target-unreachable", "No number of removals gives what is asked."),
    NotAModel: (422, "not-a-model", "The model's directory holds no usable model."),
    UnknownArchitecture: (422, "unknown-architecture", "The model's family is not supported."),
    UnsupportedConfig: (422, "unsupported-config", "The model's configuration is not supported."),
    CheckpointCorrupt: (422, "checkpoint-corrupt", "The checkpoint is not what was published."),
    DiskTooSmall: (422, "disk-too-small", "The pruned model would not fit on the disk."),
    InvalidSampling: (422, "invalid-sampling", "A sampling parameter is out of range."),
    RequestRefused: (422, "request-refused", "The model cannot take this prompt."),
    QueueFull: (429, "queue-full", "Too many jobs are waiting."),
    Overloaded: (429, "overloaded", "Too many requests are waiting."),
    TooManyWatchers: (429, "too-many-watchers", "Too many clients follow jobs."),
    EngineStopped: (503, "engine-stopped", "The engine does not take requests now."),
    JobStoreUnavailable: (503, "job-store-unavailable", "The job store cannot be reached."),
    GenerationFailed: (500, "generation-failed", "The engine failed on this request."),
}


_TOO_LARGE_TITLE = "The request's body is too large."
_TOO_LARGE = {
    "type": "body-too-large",
    "title": _TOO_LARGE_TITLE,
    "status": 413,
    "detail": "The body is larger than SLEB_MAX_BODY_BYTES allows: send less text at once.",
}


_DOCUMENT = {"$ref": "#/components/schemas/Problem"}  # from fastapi_problem
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


def described(*errors: type[Exception], has_body: bool = False) -> dict[int | str, dict[str, Any]]:
    """The answers to these errors by status, and to any invalid request, as OpenAPI responses."""
    rows = [(*PROBLEMS[error], hasattr(error, "retry_after_s")) for error in errors]
    rows += [(422, "", "The request is not valid.", False)]
    rows += [(413, "", _TOO_LARGE_TITLE, False)] if has_body else []
    found: dict[int | str, dict[str, Any]] = {}
    for status, _type, title, has_retry_after in rows:
        content = {"application/problem+json": {"schema": _DOCUMENT}}
        answer = found.setdefault(status, {"description": "", "content": content})
        answer["description"] = f"{answer['description']} {title}".strip()
        if has_retry_after or status in (429, 503):
            answer["headers"] = _RETRY_AFTER
    return found


def install_errors(app: FastAPI) -> None:
    """Answer every error of this app as ``application/problem+json``."""
    handler = new_exception_handler(
        logger=logger,
        unhandled_wrappers={"default": _Unexpected},
        handlers={error: _to_problem(*row) for error, row in PROBLEMS.items()},
        post_hooks=[_add_request_id],
        request_validation_handler=_validation_problem,
    )
    add_exception_handler(app, handler)
    for error in PROBLEMS:  # or starlette takes them for defects, and raises them once more
        app.add_exception_handler(error, handler)
    app.add_middleware(_TooLarge)


class _Unexpected(StatusProblem):
    """A defect of this service: the log has the traceback, the client the request's id."""

    type_ = "internal-error"
    title = "Something went wrong on our side."
    status = 500

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        super().__init__("The log has more under this request's id; please report it.")


class _TooLarge:
    """The body limit answers in plain text, before any handler is asked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_replaced = False

        async def replace(message: Message) -> None:
            nonlocal is_replaced
            if message["type"] == "http.response.start" and message["status"] == 413:
                is_replaced = True
                await JSONResponse(_TOO_LARGE, 413, media_type="application/problem+json")(
                    scope, receive, send
                )
            elif not is_replaced:
                await send(message)

        await self._app(scope, receive, replace)


def _to_problem(
    status: int, type_: str, title: str
) -> Callable[[ExceptionHandler, Request, Exception], Problem]:
    def handle(_handler: ExceptionHandler, _request: Request, error: Exception) -> Problem:
        extra = {"param": param} if (param := getattr(error, "param", None)) else {}
        retry_after_s = getattr(error, "retry_after_s", 1.0 if status == 503 else None)
        headers = {"Retry-After": f"{retry_after_s:.0f}"} if retry_after_s is not None else {}
        return Problem(title, type_, str(error), status, headers, **extra)

    return handle


def _validation_problem(
    _handler: ExceptionHandler, _request: Request, error: RequestValidationError
) -> Problem:
    """A pointer per error, and never the input itself: it may be megabytes, or a secret."""
    errors = [
        {"pointer": "/" + "/".join(str(part) for part in found["loc"][1:]), "detail": found["msg"]}
        for found in error.errors()
    ]
    first = f"{errors[0]['pointer']}: {errors[0]['detail']}" if errors else "invalid"
    outside = [str(found["loc"][1]) for found in error.errors() if found["loc"][0] != "body"]
    extra: dict[str, Any] = {"param": outside[0]} if outside else {}
    title = "The request is not valid."
    return Problem(title, "invalid-request", first, 422, errors=errors[:50], **extra)


def _add_request_id(
    content: dict[str, Any], _request: Request, response: Response
) -> tuple[dict[str, Any], Response]:
    """Outside the middleware that does it for all other answers."""
    if content["type"] == _Unexpected.type_ and (request_id := correlation_id.get()):
        response.headers["X-Request-Id"] = request_id
    return content, response
