"""Exceptions as RFC 9457 problem documents: one table, and the handlers that use it."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from app.api.job_checks import MemoryTooSmall
from app.api.problems import BodyTooLarge, NotOffered, Problem, is_openai, problem_response
from app.api.query import UNKNOWN_PARAMETER, parameters_of
from app.api.schemas.calibration import without_tags
from app.api.schemas.response_format import without_format_tags
from app.api.unload import ModelInUse, NotDeletable
from app.auth.audit import AuditUnavailable
from app.auth.keys import KeyRefused, ScopeMissing
from app.auth.limits import LimitReached, TokenQuotaReached
from app.auth.scopes import NotLocal
from app.auth.sessions import NotSameOrigin, SessionsNotKept
from app.compare.compare import NotComparable
from app.compare.evaluation import NotEvaluable
from app.compare.frontier import FrontierBusy, FrontierFailed
from app.compare.task_evaluation import TasksFailed
from app.engine.async_engine import EngineStopped, StillWarmingUp
from app.engine.cache.caches import CacheTooLarge, CacheTooSmall
from app.engine.cache.paged_cache import CannotCompute
from app.engine.engine import NotYetReproducible, PromptTooLong
from app.engine.grammar import ResponseFormatRefused
from app.engine.sampling.text import MessagesRefused, NoChatTemplate
from app.engine.scheduling.admission import Overloaded
from app.engine.scheduling.sequence import InvalidSampling, RequestRefused
from app.generation.openai_client import (
    BackendFailed,
    BackendOverloaded,
    BackendRefused,
    BackendTimedOut,
    BackendUnavailable,
)
from app.generation.output import GenerationFailed
from app.generation.vocabulary import NoTokenIds
from app.models.aliases import AliasTaken, InvalidAlias, InvalidAliasFile
from app.models.catalog import UnknownModel
from app.models.registry import ModelReplaced
from app.models.weights import NoRoomForWeights, WeightsLoading
from app.request_id import HEADER as REQUEST_ID
from app.request_id import current_request_id
from app.results.store import ResultNotFound, ResultNotKept
from app.vllm.server import VllmUnavailable
from app.webhooks.target import InvalidWebhook, WebhooksOff
from pruning.checkpoints.store import CheckpointCorrupt, CheckpointNotFound
from pruning.data.corpora import CalibrationError
from pruning.data.texts import TextUnusable
from pruning.evaluation.task_errors import ZeroShotUnavailable
from pruning.extras import ExtraMissing
from pruning.healing.record import NotHealable
from pruning.jobs.conditions import CheckpointQuotaReached, QueueFull, QueueQuotaReached
from pruning.jobs.deletion import CheckpointInUse
from pruning.jobs.estimate import DiskTooSmall
from pruning.jobs.events import TooManyWatchers
from pruning.jobs.idempotency import IdempotencyInFlight, IdempotencyKeyReused
from pruning.jobs.job import IllegalTransition, JobNotFound
from pruning.jobs.redis import JobStoreUnavailable
from pruning.models.architectures import UnknownArchitecture, UnsupportedConfig
from pruning.models.store import ModelNotFound, NotAModel
from pruning.records import sendable
from pruning.sleb import TooManyRemovals
from pruning.spec import InvalidSpec, TargetUnreachable
from pruning.spec.prune import REMOVED
from pruning.storage.cache import NoRoomInCache
from pruning.storage.store import StoreError

logger = logging.getLogger(__name__)

# Per exception its HTTP status, problem type and title. Its message becomes the detail.
Problems = Mapping[type[Exception], tuple[int, str, str]]

_AUTH: Problems = {
    NotLocal: (403, "not-local", "Without API keys, only requests from this machine are allowed."),
    KeyRefused: (401, "invalid-api-key", "The API key is missing or invalid."),
    NotSameOrigin: (
        403,
        "not-same-origin",
        "Requests with a session cookie must come from this service's own pages.",
    ),
    SessionsNotKept: (503, "sessions-not-kept", "Session files cannot be read or written."),
    ScopeMissing: (403, "scope-missing", "The API key lacks the required scope."),
    AuditUnavailable: (503, "audit-unavailable", "The audit log cannot be written."),
    LimitReached: (429, "key-limit-reached", "The rate limit of this API key is exceeded."),
    TokenQuotaReached: (429, "token-quota-reached", "The token quota per minute is exceeded."),
}
_MODELS: Problems = {
    UnknownModel: (404, "model-not-found", "Model not found."),
    ModelNotFound: (404, "model-not-found", "Model not found."),
    NotAModel: (422, "not-a-model", "The model directory contains no usable model."),
    UnknownArchitecture: (422, "unknown-architecture", "Model architecture not supported."),
    UnsupportedConfig: (422, "unsupported-config", "Model configuration not supported."),
    CannotCompute: (422, "cannot-compute", "The model cannot generate a token."),
    CheckpointNotFound: (404, "checkpoint-not-found", "Checkpoint or file not found."),
    ResultNotFound: (404, "result-not-found", "Result not found."),
    CheckpointCorrupt: (422, "checkpoint-corrupt", "The checkpoint is corrupt."),
    InvalidAlias: (422, "invalid-alias", "The alias is invalid."),
    AliasTaken: (409, "alias-taken", "A model already has this name."),
    InvalidAliasFile: (500, "invalid-alias-file", "The alias file is invalid."),
    NotDeletable: (409, "not-deletable", "Only dense models and aliases can be deleted here."),
    ModelInUse: (409, "model-in-use", "The model is in use."),
    ModelReplaced: (409, "model-replaced", "The model was replaced after it was loaded."),
    WeightsLoading: (409, "model-loading", "The model is being loaded."),
    StoreError: (503, "checkpoint-store-unavailable", "The object store is unavailable."),
    # not 503, which asks clients to retry: first something must be unloaded (RFC 4918, 11.5)
    NoRoomInCache: (507, "no-room-in-cache", "Not enough disk space for the checkpoint."),
    CacheTooSmall: (507, "cache-too-small", "Not enough memory for the KV cache."),
    CacheTooLarge: (507, "cache-too-large", "The KV cache is configured too large."),
    NoRoomForWeights: (507, "no-room-for-weights", "Not enough memory to load the model."),
    ResultNotKept: (507, "result-not-kept", "The result cannot be saved."),
    FrontierBusy: (409, "frontier-busy", "Another frontier is being measured."),
    TasksFailed: (503, "tasks-failed", "The tasks were not answered."),
    FrontierFailed: (503, "frontier-failed", "The measurement of the frontier failed."),
}
_JOBS: Problems = {
    JobNotFound: (404, "job-not-found", "Job not found."),
    IllegalTransition: (
        409,
        "illegal-transition",
        "The job's status does not allow this operation.",
    ),
    CheckpointInUse: (409, "checkpoint-in-use", "An alias refers to the checkpoint."),
    InvalidSpec: (422, "invalid-spec", "A job parameter is invalid."),
    TooManyRemovals: (422, "too-many-removals", "The model has too few removable blocks."),
    TargetUnreachable: (
        422,
        "target-unreachable",
        "The target cannot be reached by removing blocks.",
    ),
    NotHealable: (422, "not-healable", "The checkpoint cannot be healed."),
    CalibrationError: (422, "text-unusable", "The calibration text cannot be used."),
    ExtraMissing: (422, "extra-missing", "An optional package is not installed."),
    ZeroShotUnavailable: (422, "zero-shot-unavailable", "Zero-shot tasks are not available."),
    DiskTooSmall: (422, "disk-too-small", "Not enough disk space for the pruned model."),
    MemoryTooSmall: (422, "memory-too-small", "Not enough memory for the job."),
    InvalidWebhook: (422, "invalid-webhook", "Webhook URL not allowed."),
    WebhooksOff: (422, "webhooks-off", "Webhooks are disabled."),
    IdempotencyInFlight: (
        409,
        "idempotency-in-flight",
        "A request with this idempotency key is in progress.",
    ),
    IdempotencyKeyReused: (
        422,
        "idempotency-key-reused",
        "The idempotency key was used with a different request.",
    ),
    QueueFull: (429, "queue-full", "The job queue is full."),
    QueueQuotaReached: (429, "queue-quota-reached", "The quota of queued jobs is exceeded."),
    # not 429, which asks clients to retry: first something must be deleted (RFC 4918, 11.5)
    CheckpointQuotaReached: (
        507,
        "checkpoint-quota-reached",
        "The checkpoint quota is exceeded.",
    ),
    TooManyWatchers: (429, "too-many-watchers", "Too many clients are following job events."),
    JobStoreUnavailable: (503, "job-store-unavailable", "The job store is unavailable."),
}
_GENERATION: Problems = {
    NotOffered: (404, "not-offered", "This service does not do that."),
    InvalidSampling: (422, "invalid-sampling", "This feature is not supported."),
    ResponseFormatRefused: (
        422,
        "response-format-refused",
        "A sampling parameter is out of range.",
    ),
    PromptTooLong: (422, "prompt-too-long", "Prompt and output exceed the context length."),
    RequestRefused: (422, "request-refused", "The model cannot process this prompt."),
    NoChatTemplate: (422, "no-chat-template", "The model has no chat template."),
    MessagesRefused: (422, "messages-refused", "The chat template rejects the messages."),
    NoTokenIds: (422, "no-token-ids", "Token ids are not available for this model."),
    StillWarmingUp: (
        503,
        "still-warming-up",
        "Kernels for a model are being compiled or selected.",
    ),
    NotComparable: (422, "not-comparable", "The models cannot be compared."),
    NotEvaluable: (422, "not-evaluable", "The model cannot be evaluated here."),
    TextUnusable: (422, "text-unusable", "The text cannot be used."),
    Overloaded: (429, "overloaded", "Too many requests are waiting."),
    EngineStopped: (503, "engine-stopped", "The engine is not accepting requests."),
    NotYetReproducible: (503, "not-yet-reproducible", "Kernels are still being compiled."),
    GenerationFailed: (500, "generation-failed", "Generation failed."),
    ClientDisconnect: (499, "client-gone", "The client closed the connection."),
}
_EXTERNAL: Problems = {
    VllmUnavailable: (503, "vllm-unavailable", "vLLM is not serving the model."),
    BackendRefused: (422, "backend-refused", "The external server rejected the request."),
    BackendOverloaded: (429, "backend-overloaded", "The external server is overloaded."),
    BackendUnavailable: (503, "backend-unavailable", "The external server is unavailable."),
    BackendFailed: (502, "backend-failed", "The external server sent an invalid response."),
    BackendTimedOut: (504, "backend-timed-out", "The external server timed out."),
}
PROBLEMS: Problems = {**_AUTH, **_MODELS, **_JOBS, **_GENERATION, **_EXTERNAL}

# what submitting a job may raise, one that heals a checkpoint, and a retry
SUBMIT_RAISES = (
    ModelNotFound,
    NotAModel,
    UnknownArchitecture,
    UnsupportedConfig,
    InvalidSpec,
    TooManyRemovals,
    TargetUnreachable,
    DiskTooSmall,
    MemoryTooSmall,
    CalibrationError,
    ExtraMissing,
    ZeroShotUnavailable,
    InvalidWebhook,
    WebhooksOff,
    IdempotencyKeyReused,
    IdempotencyInFlight,
    JobNotFound,  # the job of the idempotency key was deleted
    QueueFull,
    QueueQuotaReached,
    CheckpointQuotaReached,
    JobStoreUnavailable,
)

HEAL_RAISES = (*SUBMIT_RAISES, CheckpointNotFound, CheckpointCorrupt, NotHealable)
RETRY_RAISES = (*HEAL_RAISES, IllegalTransition)

INVALID_TITLE = "The request is invalid."
_MAX_ERRORS = 50
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def install_errors(app: FastAPI) -> None:
    """Respond to every error of the app with ``application/problem+json``."""

    # a function that is not async would run in a thread, which an overloaded process is slow to do
    async def handle(request: Request, error: Exception) -> Response:
        problem = _problem(request, error)
        if problem.status >= 500:
            logger.error(problem.title, exc_info=error)
        return problem_response(problem, request.url.path)

    # the errors listed here too, or Starlette re-raises them as unhandled
    for kind in [*PROBLEMS, HTTPException, RequestValidationError, Exception]:
        app.add_exception_handler(kind, handle)
    app.add_middleware(BodyTooLarge)


def _problem(request: Request, error: Exception) -> Problem:
    if isinstance(error, RequestValidationError):
        return _validation_problem(request, error)
    if isinstance(error, HTTPException):
        return _http_problem(request, error)
    problem = problem_of(error)
    request_id = current_request_id.get()
    if problem.type != _UNEXPECTED.type or request_id is None:
        return problem
    # the middleware that adds it to all other responses does not see this one
    return replace(problem, headers={REQUEST_ID: request_id})


# An unhandled exception. The log has the traceback, the client only the request id.
_UNEXPECTED = Problem(
    "internal-error",
    "Internal server error.",
    500,
    "See the service log for this request id, and report the error.",
)


def problem_of(error: Exception, problems: Problems = PROBLEMS) -> Problem:
    """Return the problem document of an error, without details for one that is not listed."""
    for kind, (status, type_, title) in problems.items():
        if isinstance(error, kind):
            extra = {"param": param} if (param := getattr(error, "param", None)) else {}
            detail = sendable(str(error))  # it may quote a file that somebody has damaged
            return Problem(type_, title, status, detail, _headers(error, status), extra)
    return _UNEXPECTED


def _headers(error: Exception, status: int) -> dict[str, str]:
    retry_after_s = getattr(error, "retry_after_s", 1.0 if status == 503 else None)
    headers = {"Retry-After": f"{retry_after_s:.0f}"} if retry_after_s is not None else {}
    challenge = getattr(error, "challenge", None)
    return headers if challenge is None else {**headers, "WWW-Authenticate": challenge}


def _http_problem(request: Request, error: HTTPException) -> Problem:
    """Of an error that the framework raises, such as 404 and 405."""
    status, detail, headers = error.status_code, error.detail, dict(error.headers or {})
    title = HTTPStatus(status).phrase
    if status == 405:
        headers["Allow"] = ", ".join(_allowed(request))
    if status == 404:  # no route has the path
        detail = _path_suggestion(request)
    return Problem(f"http-{title.lower().replace(' ', '-')}", title, status, detail, headers)


def _validation_problem(request: Request, error: RequestValidationError) -> Problem:
    """List a JSON pointer per error, but no input: that may be megabytes, or a secret."""
    listed = error.errors()[:_MAX_ERRORS]
    errors = [_pointed_at(each, request) for each in listed]
    first = f"{errors[0]['pointer']}: {errors[0]['detail']}" if errors else "invalid"
    outside = [str(each["loc"][1]) for each in listed if each["loc"][0] != "body"]
    extra: dict[str, Any] = {"errors": errors, **({"param": outside[0]} if outside else {})}
    return Problem("invalid-request", INVALID_TITLE, 422, first, extra=extra)


def _pointed_at(error: Mapping[str, Any], request: Request) -> dict[str, str]:
    where = without_format_tags(without_tags(error["loc"][1:]))
    what = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "json_invalid":
        what = f"not valid JSON: {error['ctx']['error']}, at character {where.pop()}"
    elif error["type"] == UNKNOWN_PARAMETER:
        what = f"unknown query parameter: {_parameter_suggestion(request, error['loc'][1])}"
    elif error["type"] == "extra_forbidden":
        what = f"unknown field: {_field_suggestion(request, error['loc'])}"
    elif error["loc"] == ("body",) and error["type"] in ("missing", "model_attributes_type"):
        what = "expected a JSON object with Content-Type: application/json"
    return {"pointer": "/" + "/".join(map(str, where)), "detail": what}


def _allowed(request: Request) -> Iterator[str]:
    """All methods of the resource (RFC 9110, 15.5.6). Starlette lists those of one route."""
    for method in _METHODS:
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            yield method


def _parameter_suggestion(request: Request, name: str) -> str:
    """What to do about an unknown query parameter."""
    route = request.scope["route"]
    known = parameters_of(route.dependant)
    if near := _nearest(name, known):
        return f"did you mean {near}?"
    body = route.body_field
    models = [] if body is None else _models_in(body.field_info.annotation)
    if any(name in model.model_fields for model in models):
        return "send it as a field of the body"
    return f"expected {', '.join(sorted(known))}" if known else "leave it out"


def _field_suggestion(request: Request, loc: Sequence[int | str]) -> str:
    """What to do about an unknown field: take the name that is near, or leave it out.

    ``loc`` is where pydantic found it: ``body``, names, indices, and tags of unions.
    """
    body = getattr(request.scope.get("route"), "body_field", None)
    models = set(_models_in(body.field_info.annotation)) if body is not None else set()
    for part in loc[1:-1]:
        inner = {
            candidate
            for model in models
            for name, field in model.model_fields.items()
            if name == part
            for candidate in _models_in(field.annotation)
        }
        models = inner or models  # an index or a tag changes nothing
    known = {name for model in models for name in model.model_fields}
    name = str(loc[-1])
    if "num_remove" in known and (reason := REMOVED.get(name)):
        return f"this field was removed, because {reason}: remove it from the request"
    near = _nearest(name, known)
    return f"did you mean {near}?" if near else "remove it from the request"


def _path_suggestion(request: Request) -> str:
    """Words about a path that no route has."""
    path = request.url.path
    known = request.app.openapi()["paths"]
    near = _nearest(path, (each for each in known if is_openai(each) == is_openai(path)))
    meant = f"did you mean {near}? " if near else ""
    return f"no route matches {path[:128]!r}: {meant}/docs and /openapi.json list all routes"


def _nearest(name: str, known: Iterable[str]) -> str:
    return next(iter(get_close_matches(name, sorted(known), n=1)), "")


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:  # noqa: ANN401 - any type
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)
