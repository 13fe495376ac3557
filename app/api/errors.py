"""One table from exceptions to HTTP: RFC 9457 problem documents, with nothing internal in a 500."""

import logging
from collections.abc import Mapping
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
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.routing import Match

from app.api.problems import TOO_LARGE_TITLE, TooLarge, envelope, is_openai
from app.api.schemas.jobs import without_tags
from app.api.unload import ModelInUse
from app.auth.keys import KeyRefused, ScopeMissing
from app.auth.limits import LimitReached
from app.auth.scopes import NotLocal
from app.compare.compare import NotComparable
from app.engine.admission import Overloaded
from app.engine.async_engine import EngineStopped
from app.engine.engine import PromptTooLong, RequestRefused
from app.engine.sequence import InvalidSampling
from app.engine.text import MessagesRefused, NoChatTemplate
from app.generation.openai_client import (
    BackendFailed,
    BackendOverloaded,
    BackendRefused,
    BackendTimedOut,
    BackendUnavailable,
)
from app.generation.output import GenerationFailed, NoTokenIds
from app.models.catalog import UnknownModel
from app.models.registry import ModelReplaced
from app.models.weights import NoRoomForWeights, WeightsLoading
from app.webhooks.target import InvalidWebhook, WebhooksOff
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointNotFound
from pruning.jobs.estimate import DiskTooSmall
from pruning.jobs.events import TooManyWatchers
from pruning.jobs.idempotency import IdempotencyKeyReused
from pruning.jobs.job import IllegalTransition, JobNotFound
from pruning.jobs.redis import JobStoreUnavailable
from pruning.jobs.store import IdempotencyInFlight, QueueFull
from pruning.models.architectures import UnknownArchitecture, UnsupportedConfig
from pruning.models.store import ModelNotFound, NotAModel
from pruning.sleb import TooManyRemovals
from pruning.spec import InvalidSpec, TargetUnreachable

logger = logging.getLogger(__name__)

# exception: status, type of the problem, title. The message of the exception is the detail.
Problems = Mapping[type[Exception], tuple[int, str, str]]

PROBLEMS: Problems = {
    NotLocal: (403, "not-local", "Without keys, this machine alone is answered."),
    KeyRefused: (401, "invalid-api-key", "The request has no key that counts."),
    ScopeMissing: (403, "scope-missing", "The key is not for this."),
    UnknownModel: (404, "model-not-found", "There is no such model."),
    ModelNotFound: (404, "model-not-found", "There is no such model."),
    JobNotFound: (404, "job-not-found", "There is no such job."),
    CheckpointNotFound: (404, "checkpoint-not-found", "There is no such checkpoint, or such file."),
    IllegalTransition: (409, "illegal-transition", "The job's state does not allow this."),
    ModelInUse: (409, "model-in-use", "Requests are running on the model."),
    ModelReplaced: (409, "model-replaced", "Another model of that name is loaded."),
    WeightsLoading: (409, "model-loading", "The model is being loaded."),
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
    InvalidWebhook: (422, "invalid-webhook", "Nothing can be sent to the webhook's URL."),
    WebhooksOff: (422, "webhooks-off", "This service sends no webhooks."),
    InvalidSampling: (422, "invalid-sampling", "A sampling parameter is out of range."),
    PromptTooLong: (422, "prompt-too-long", "Prompt and answer do not fit into the model."),
    NotComparable: (422, "not-comparable", "The models cannot be compared."),
    RequestRefused: (422, "request-refused", "The model cannot take this prompt."),
    NoChatTemplate: (422, "no-chat-template", "The model has no chat template."),
    MessagesRefused: (422, "messages-refused", "The model's chat template refuses the messages."),
    NoTokenIds: (422, "no-token-ids", "The model's tokens are not known by their ids."),
    BackendRefused: (422, "backend-refused", "The model's server does not take this request."),
    BackendOverloaded: (429, "backend-overloaded", "The model's server takes no more requests."),
    QueueFull: (429, "queue-full", "Too many jobs are waiting."),
    Overloaded: (429, "overloaded", "Too many requests are waiting."),
    LimitReached: (429, "key-limit-reached", "The key has had all that it may for now."),
    TooManyWatchers: (429, "too-many-watchers", "Too many clients follow jobs."),
    EngineStopped: (503, "engine-stopped", "The engine does not take requests now."),
    JobStoreUnavailable: (503, "job-store-unavailable", "The job store cannot be reached."),
    BackendUnavailable: (503, "backend-unavailable", "The model's server cannot serve now."),
    BackendFailed: (502, "backend-failed", "The model's server did not answer as it should."),
    BackendTimedOut: (504, "backend-timed-out", "The model's server did not answer in time."),
    # not 503, which asks clients to come back: somebody has to make room first (RFC 4918, 11.5)
    NoRoomForWeights: (507, "no-room-for-weights", "The model does not fit beside what is loaded."),
    GenerationFailed: (500, "generation-failed", "The engine failed on this request."),
    ClientDisconnect: (499, "client-gone", "The client has gone before its answer."),
}

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_DOCUMENT = {"$ref": "#/components/schemas/Problem"}  # from fastapi_problem
_RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}


def described(*errors: type[Exception], has_body: bool = False) -> dict[int | str, dict[str, Any]]:
    """The answers to these errors by status, and to any invalid request, as OpenAPI responses."""
    rows = [(*PROBLEMS[error], hasattr(error, "retry_after_s")) for error in errors]
    rows += [(422, "", "The request is not valid.", False)]
    rows += [(400, "", "The body is no text.", False)] if has_body else []
    rows += [(413, "", TOO_LARGE_TITLE, False)] if has_body else []
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
        handlers=dict.fromkeys(PROBLEMS, lambda _handler, _request, error: problem_of(error)),
        post_hooks=[_add_request_id, _add_allowed, _to_openai],
        request_validation_handler=_validation_problem,
    )
    add_exception_handler(app, handler, generic_swagger_defaults=False)  # ours are exact
    for error in PROBLEMS:  # or starlette takes them for defects, and raises them once more
        app.add_exception_handler(error, handler)
    app.add_middleware(TooLarge)


class _Unexpected(StatusProblem):
    """A defect of this service: the log has the traceback, the client the request's id."""

    type_ = "internal-error"
    title = "Something went wrong on our side."
    status = 500

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        super().__init__("The log has more under this request's id; please report it.")


def problem_of(error: Exception, problems: Problems = PROBLEMS) -> Problem:
    """What a client is told about it; about a defect, only that there is one."""
    for kind, (status, type_, title) in problems.items():
        if isinstance(error, kind):
            extra = {"param": param} if (param := getattr(error, "param", None)) else {}
            return Problem(title, type_, str(error), status, _headers(error, status), **extra)
    return _Unexpected()


def _headers(error: Exception, status: int) -> dict[str, str]:
    retry_after_s = getattr(error, "retry_after_s", 1.0 if status == 503 else None)
    headers = {"Retry-After": f"{retry_after_s:.0f}"} if retry_after_s is not None else {}
    challenge = getattr(error, "challenge", None)
    return headers if challenge is None else {**headers, "WWW-Authenticate": challenge}


def _validation_problem(
    _handler: ExceptionHandler, _request: Request, error: RequestValidationError
) -> Problem:
    """A pointer per error, and never the input itself: it may be megabytes, or a secret."""
    errors = [_pointed_at(found) for found in error.errors()]
    first = f"{errors[0]['pointer']}: {errors[0]['detail']}" if errors else "invalid"
    outside = [str(found["loc"][1]) for found in error.errors() if found["loc"][0] != "body"]
    extra: dict[str, Any] = {"param": outside[0]} if outside else {}
    title = "The request is not valid."
    return Problem(title, "invalid-request", first, 422, errors=errors[:50], **extra)


def _pointed_at(found: Mapping[str, Any]) -> dict[str, str]:
    where, what = without_tags(found["loc"][1:]), str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "json_invalid":
        what = f"this is no JSON: {found['ctx']['error']}, at character {where.pop()}"
    elif found["type"] == "extra_forbidden":
        what = "there is no such field: leave it out"
    elif found["loc"] == ("body",) and found["type"] in ("missing", "model_attributes_type"):
        what = "expected a JSON object, sent with Content-Type: application/json"
    return {"pointer": "/" + "/".join(map(str, where)), "detail": what}


def _add_request_id(
    content: dict[str, Any], _request: Request, response: Response
) -> tuple[dict[str, Any], Response]:
    """Outside the middleware that does it for all other answers."""
    if content["type"] == _Unexpected.type_ and (request_id := correlation_id.get()):
        response.headers["X-Request-Id"] = request_id
    return content, response


def _add_allowed(
    content: dict[str, Any], request: Request, response: Response
) -> tuple[dict[str, Any], Response]:
    """All methods of the resource (RFC 9110, 15.5.6): starlette tells those of one route only."""
    if content["status"] == 405:
        scopes = {method: {**request.scope, "method": method} for method in _METHODS}
        allowed = [
            method
            for method, scope in scopes.items()
            if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
        ]
        response.headers["Allow"] = ", ".join(allowed)
    return content, response


def _to_openai(
    content: dict[str, Any], request: Request, response: Response
) -> tuple[dict[str, Any], Response]:
    """Clients of the OpenAI routes know the envelope of OpenAI only."""
    if is_openai(request.url.path):
        response.status_code, content = envelope(content, request.url.path)
        response.body = JSONResponse(content).body
        response.headers["content-type"] = "application/json"
    return content, response
